# Prints the properties of this device as lines of the form "key value". $1 is the installation folder.
# POSIX sh only, because the device may lack Python. The script arrives on stdin and is not stored.
prefix=$1
set -u
LC_ALL=C
export LC_ALL

say() { printf '%s\n' "$*"; }

say "bits $(getconf LONG_BIT 2>/dev/null || echo 64)"
say "kernel $(uname -s)"
say "machine $(uname -m)"
# shellcheck disable=SC1091  # the file is on the device
say "system $( (. /etc/os-release && say "$PRETTY_NAME") 2>/dev/null)"
say "glibc $(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)"
say "clock $(date +%s)"
if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then say "systemd yes"; fi

if [ "$(id -u)" = 0 ]; then
  say "root root"
elif sudo -n true 2>/dev/null; then
  say "root sudo"
fi

folder=$prefix
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
say "free_kib $(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
say "agent $(sha256sum "$prefix/agent.pyz" 2>/dev/null | cut -d ' ' -f 1)"

# The path of each Python version is printed once. Several names can lead to the same version.
# Without -I, Python would import modules from the user's home folder.
versions=' '
for name in /usr/bin/python3 python3 python3.9 python3.10 python3.11 python3.12 python3.13 python3.14; do
  path=$(command -v "$name") || continue
  version=$("$path" -Ic 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  case $versions in *" $version "*) continue ;; esac
  versions="$versions$version "
  say "python $version $path"
  if "$path" -Ic 'import ensurepip, venv' 2>/dev/null; then say "venv $version"; fi
done

find_picamera2='import importlib.util, sys; sys.exit(importlib.util.find_spec("picamera2") is None)'
if /usr/bin/python3 -Ic "$find_picamera2" 2>/dev/null; then say "picamera2 yes"; fi

for node in /dev/video*; do
  if [ -e "$node" ]; then say "camera $node $(cat "/sys/class/video4linux/${node#/dev/}/name" 2>/dev/null)"; fi
done
say "end"
