#!/bin/sh
# One SeaweedFS with its S3 gateway and one pair of keys, which come by the environment and stand in no argument.
set -eu
umask 077

cat > /tmp/s3.json <<EOF
{"identities": [{"name": "polyreel",
  "credentials": [{"accessKey": "$S3_ACCESS_KEY_ID", "secretKey": "$S3_SECRET_ACCESS_KEY"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
EOF

exec weed server -dir=/data -ip="$(hostname -i | cut -d ' ' -f 1)" -ip.bind=0.0.0.0 -volume.max=0 \
    -master.volumeSizeLimitMB=1024 -master.telemetry=false \
    -s3 -s3.port=8333 -s3.config=/tmp/s3.json -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0
