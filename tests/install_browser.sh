#!/bin/sh
# Installs the browser that tests open pages in (100 MB), where there is none and apt-get may be used; elsewhere says how.
# SEGCLIP_BROWSER names another.
[ -n "${SEGCLIP_BROWSER:-}" ] && exit 0
for program in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$program" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing chromium-headless-shell, which tests open pages in"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null && exit 0
    apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
echo "setup: no browser for the tests of pages, which are skipped: install Chromium (on Debian, as root: apt-get install" \
    "chromium-headless-shell), or name one in SEGCLIP_BROWSER"
