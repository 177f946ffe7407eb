#!/usr/bin/env bash
# Which tags an image gets, one per line: image-tags.sh REF VERSION EPOCH64 DATE VERSION_CHANGED(yes|no)
set -euo pipefail
ref=$1 version=$2 epoch64=$3 date=$4 changed=$5
case $ref in
    refs/tags/v"$version") printf '%s\n' "$version" "v$version" latest ;;
    refs/tags/*)
        echo "the tag ${ref#refs/tags/} does not fit .version, which is $version" >&2
        exit 1
        ;;
    refs/heads/main | refs/heads/develop)
        branch=${ref#refs/heads/}
        printf '%s-%s-%s\n' "$branch" "$epoch64" "$date"
        if [ "$changed" = yes ]; then
            if [ "$branch" = main ]; then printf 'v%s-beta\n' "$version"; else printf 'v%s-alpha\n' "$version"; fi
        fi
        ;;
    *)
        echo "no image is published for $ref" >&2
        exit 1
        ;;
esac
