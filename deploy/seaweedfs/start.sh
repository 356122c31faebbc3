#!/bin/sh
# One SeaweedFS with its S3 gateway and one pair of keys, which come by the environment and stand in no argument.
set -eu
umask 077
config=${S3_CONFIG:-/tmp/s3.json}

# The port is published, for signed links lead there: a secret that stands in a file of ours is nobody's.
case "${S3_SECRET_ACCESS_KEY:-}" in
"" | change-me* | *[!A-Za-z0-9/+=_-]*)
    echo "S3_SECRET_ACCESS_KEY: it is empty, the example's, or has other characters than letters, digits and / + = _ -;" \
        "put one of your own into .env. Make one: openssl rand -hex 24" >&2
    exit 2
    ;;
esac

cat > "$config" <<EOF
{"identities": [{"name": "polyreel",
  "credentials": [{"accessKey": "$S3_ACCESS_KEY_ID", "secretKey": "$S3_SECRET_ACCESS_KEY"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
EOF

exec weed server -dir=/data -ip="$(hostname -i | cut -d ' ' -f 1)" -ip.bind=0.0.0.0 -volume.max=0 \
    -master.volumeSizeLimitMB=1024 -master.telemetry=false \
    -s3 -s3.port=8333 -s3.config="$config" -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0
