#!/bin/sh
# The service `init` of docker-compose.yml: makes the lab's certificates, passwords and broker rules in /access, where
# they stay, and copies to each volume under /homes what its owner may see. Run again it changes nothing that is good.

set -eu
umask 077

lab=10001      # the user of the image
mosquitto=1883 # the user of eclipse-mosquitto

agents=
for home in /homes/*-1; do
    agents="$agents ${home##*/}"
done

# shellcheck disable=SC2086 # a list of names
python -m bus.setup /access --as /mosquitto/config --agents $agents

give() { # USER SOURCE TARGET: whole or not at all, and readable by USER only
    cp "$2" "$3.new"
    chown "$1:$1" "$3.new"
    mv "$3.new" "$3"
}

for agent in $agents; do
    home=/homes/$agent
    mkdir -p "$home/access"
    give $lab /access/ca.pem "$home/access/ca.pem"
    give $lab "/access/agents/$agent" "$home/access/password"
    chown $lab:$lab "$home" "$home/access"
    chmod 700 "$home" "$home/access"
done

for file in /access/broker/*; do
    give $mosquitto "$file" "/homes/broker/${file##*/}"
done
chown $mosquitto:$mosquitto /homes/broker
chmod 700 /homes/broker
