#!/usr/bin/env bash
# Asks helloworld at $GATEWAY_URL without end.
while true; do curl -s -o /dev/null "http://$GATEWAY_URL/hello"; done
