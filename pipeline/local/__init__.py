"""Embedded etcd, Postgres and Kafka."""
