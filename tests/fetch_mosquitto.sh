#!/bin/sh
# Give the tests a mosquitto where the machine has none: Debian's packages, unpacked into one folder, without root.
#
#     sh tests/fetch_mosquitto.sh FOLDER
#
# FOLDER/mosquitto then starts it with the libraries that it needs beside it. Prints which broker the tests will use and
# exits 0 in any case: without apt, or without a network, they use amqtt.
set -u

folder=${1:?usage: fetch_mosquitto.sh FOLDER}
PATH=$PATH:/usr/sbin:/usr/local/sbin

if command -v mosquitto > /dev/null; then
    echo "Broker of the tests: mosquitto ($(command -v mosquitto))"
    exit 0
fi
if [ -x "$folder/mosquitto" ]; then
    echo "Broker of the tests: mosquitto ($folder/mosquitto)"
    exit 0
fi

without_mosquitto() {
    echo "Broker of the tests: amqtt ($1)"
    rm -rf "$work"
    exit 0
}

# Beside the target, so that the last step is one rename.
mkdir -p "$(dirname "$folder")"
parent=$(cd "$(dirname "$folder")" && pwd)
work=$(mktemp -d "$parent/mosquitto.XXXXXX") || exit 1
trap 'rm -rf "$work"; exit 130' INT TERM
if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
    without_mosquitto "no mosquitto, and no apt to fetch one"
fi

# Package lists and caches of our own: those of the system need root and may be empty. What is installed is the system's.
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages" "$work/tree/root"
apt() {
    apt-get -q -o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$work/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User= -o APT::Update::Post-Invoke= -o APT::Update::Post-Invoke-Success= "$@"
}
echo "Fetching mosquitto for the tests"
apt update > "$work/log" 2>&1 || without_mosquitto "no mosquitto, and apt-get update failed"
# What installing it would fetch is exactly what is missing here: lines of 'URI' FILE SIZE HASH.
apt install --print-uris -y --no-install-recommends mosquitto > "$work/uris" 2>> "$work/log" ||
    without_mosquitto "no mosquitto, and apt knows none"
names=$(sed -n "s/^'[^']*' \([^_ ]*\)_.*/\1/p" "$work/uris")
[ -n "$names" ] || without_mosquitto "no mosquitto, and apt offers none"
# shellcheck disable=SC2086 # one argument a name
(cd "$work/packages" && apt download $names) >> "$work/log" 2>&1 || without_mosquitto "mosquitto could not be fetched"
for package in "$work"/packages/*.deb; do
    dpkg -x "$package" "$work/tree/root" || without_mosquitto "mosquitto could not be unpacked"
done

cat > "$work/tree/mosquitto" << 'WRAPPER'
#!/bin/sh
# Starts the unpacked mosquitto with the libraries unpacked beside it.
root=$(dirname "$(readlink -f "$0")")/root
LD_LIBRARY_PATH=$(find "$root" -name '*.so.*' -exec dirname {} + | sort -u | tr '\n' ':')${LD_LIBRARY_PATH:-}
export LD_LIBRARY_PATH
exec "$root/usr/sbin/mosquitto" "$@"
WRAPPER
chmod +x "$work/tree/mosquitto"
"$work/tree/mosquitto" -h | grep -q '^mosquitto version' || without_mosquitto "the unpacked mosquitto does not start here"

# Moved into place whole, so that an interrupted run leaves nothing that looks ready.
rm -rf "$folder"
mv "$work/tree" "$folder" || exit 1
rm -rf "$work"
echo "Broker of the tests: mosquitto ($folder/mosquitto)"
