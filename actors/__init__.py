"""Thin Ray shells over pipeline.stages; the only package that imports ray."""
