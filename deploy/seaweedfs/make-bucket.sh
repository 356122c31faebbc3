#!/bin/sh
# Makes the bucket where there is none yet. `weed shell` ends with 1 for one that is there, and for any trouble.
set -eu

ask() {
    echo "$1" | weed shell -master="${S3_MASTER:-seaweedfs:9333}" ${S3_FILER:+-filer="$S3_FILER"}
}

ask "s3.bucket.list" | grep -q "^ *${S3_BUCKET}[^a-z0-9.-]" || ask "s3.bucket.create -name $S3_BUCKET"
