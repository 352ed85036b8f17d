#!/bin/sh
# Sends a text to a user with redis-cli alone, on whichever hubs he is:
#
#     sh notify.sh ann 'your parcel is here'
#
# It prints on how many hubs he was. The user and the text stand in JSON as they are here: without
# quotes, backslashes and control characters. BUS is the URL of the bus. docs/redis-bus.md explains
# the arguments of the script.
set -eu
user=$1 text=$2
script=$(python3 -c 'import wsc_fast.bus.redis as it; print(it.__path__[0])')/users.lua
id=$(head -c 18 /dev/urandom | base64)
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
message='{"id":"'$id'","type":"text","to":"'$user'","content":"'$text'","create_at":"'$now'"}'
redis-cli -u "${BUS:-redis://127.0.0.1:6379/0}" --eval "$script" , \
    tell wsc: "" "$user" '["message","'"$user"'",2,'"$message"']'
