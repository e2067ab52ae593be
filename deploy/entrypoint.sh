#!/bin/sh
# The image's entry point: `serve`, `db upgrade` and the like are commands of `python -m server`.
set -eu

# A password comes as a file, so that it is in no variable that `docker inspect` shows; libpq reads PGPASSWORD.
if [ -n "${DATABASE_PASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$DATABASE_PASSWORD_FILE")
    export PGPASSWORD
fi

exec python -m server "$@"
