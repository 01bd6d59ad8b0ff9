# The first start makes the cluster and its one database.
set -eu
bin=/opt/postgres/bin data=/data/postgres password=/run/secrets/oncesign/postgres/password
if ! [ -e "$data/PG_VERSION" ]; then
  rm -rf "$data.draft"
  "$bin/initdb" -D "$data.draft" -U oncesign --auth=scram-sha-256 --pwfile="$password" --encoding=UTF8 --locale=C --data-checksums
  echo "host all all all scram-sha-256" >> "$data.draft/pg_hba.conf"
  # A server for nobody but us, to make the database.
  "$bin/pg_ctl" -D "$data.draft" -w -o "-c listen_addresses=127.0.0.1 -c unix_socket_directories=''" start
  PGPASSWORD="$(cat "$password")" "$bin/psql" -h 127.0.0.1 -U oncesign -d postgres -c 'CREATE DATABASE oncesign'
  "$bin/pg_ctl" -D "$data.draft" -w stop
  mv "$data.draft" "$data"
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories='' -c password_encryption=scram-sha-256 \
  -c shared_buffers=256MB -c max_wal_size=2GB -c timezone=UTC -c jit=off -c log_min_messages=warning
