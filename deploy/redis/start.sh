#!/bin/sh
# Starts Valkey with the password of the environment. It goes in by standard input: as an argument it would stand in the
# host's list of processes.
set -eu

case "${REDIS_PASSWORD:-}" in
"" | *[!A-Za-z0-9_-]*)
    echo "REDIS_PASSWORD: letters, digits, _ and - alone, for it becomes part of a URL. Make one: openssl rand -hex 24" >&2
    exit 2
    ;;
change-me*)
    echo "REDIS_PASSWORD is still the example's; put one of your own into .env (openssl rand -hex 24)" >&2
    ;;
esac

exec valkey-server "${VALKEY_CONF:-/etc/valkey/valkey.conf}" - <<EOF
requirepass $REDIS_PASSWORD
EOF
