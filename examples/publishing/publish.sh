#!/bin/sh
# Publishes a text to a kept room with redis-cli alone, as any language can:
#
#     sh publish.sh 'order:17' 'shipped'
#
# BUS is the URL of the bus. docs/redis-bus.md explains the arguments of the script.
set -eu
room=$1 text=$2
script=$(python3 -c 'import wsc_fast.bus.redis as it; print(it.__path__[0])')/publish.lua
tag=$(head -c 6 /dev/urandom | base64 | tr '+/' '-_')
bytes=$(printf %s "$text" | wc -c)
redis-cli -u "${BUS:-redis://127.0.0.1:6379/0}" --eval "$script" \
    "wsc:h:{$room}" "wsc:t:{$room}" , \
    "wsc:c:{$room}" shell "$tag" 20 3700000 86400 300 8 "" "" \
    "$tag t 0 0 $bytes
$text"
