#!/bin/sh
# Installs this bundle on the machine that it lies on: sh install.sh --help
set -eu
umask 022

# What the bundle needs; edgerec export wrote it.
ARCH=@ARCH@
PYTHONS=@PYTHONS@
PACKAGES=@PACKAGES@
SITE=@SITE@
# Debian packages for a camera module (CSI), if the bundle supports one.
CSI_PACKAGES=@CSI@

UNIT=/etc/systemd/system/edgerec.service
OPTIONS=/etc/default/edgerec

usage() {
  cat <<END
Usage: sh install.sh [OPTION]...
Installs this bundle and what it needs into a virtual environment, and verifies it there.
Once more does no harm; what is new in this folder is taken over.

  --prefix DIR      where to [/opt/edgerec]
  --find-links DIR  also use the wheels in this folder, e.g. to install without a network
  --service         also make it a service that starts with the machine: $UNIT, $OPTIONS
  --yes             install system packages, or remove them, without asking
  --dry-run         say what would be done, and do nothing
  --undo            take away what this script brought, and nothing else
  --help            this text
END
}

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# What changes something is done by this.
run() {
  if [ -n "$dry" ]; then printf 'would run: %s\n' "$*"; else "$@"; fi
}

confirm() {
  if [ -n "$yes" ] || [ -n "$dry" ]; then return 0; fi
  [ -t 0 ] || fail "$1 There is nobody to answer: --yes agrees"
  printf '%s [y/N] ' "$1"
  read -r answer || answer=
  case $answer in [yY]*) ;; *) fail "stopped, as you said no" ;; esac
}

# The first number is of the programs: a 64-bit kernel may run 32-bit ones, as Raspberry Pi OS 32-bit does.
bits() { getconf LONG_BIT 2>/dev/null || echo 64; }

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "this bundle is for Linux, this is $(uname -s)"
  machine=$(uname -m)
  case $(bits)$machine in 32aarch64 | 32armv8l) machine=armv7l ;; 32x86_64) machine=i686 ;; esac
  case " $ARCH " in
    *" $machine "* | "  ") ;;
    *) fail "this bundle is for $ARCH, this system is $machine: export it again with a --target for $machine" ;;
  esac
}

# The names are those of the kernel's drivers: unicam on a Raspberry Pi 4 or older, rp1-cfe on a Raspberry Pi 5.
has_camera_module() {
  [ -n "$CSI_PACKAGES" ] && cat "${SYSFS:-/sys}"/class/video4linux/*/name 2>/dev/null | grep -Eq 'unicam|rp1-cfe'
}

# Sets $python and $version, or leaves $found with the versions that do not fit.
find_python() {
  python='' found='' system=''
  # Debian's packages, such as picamera2, are visible only to the system's own Python.
  if has_camera_module; then system=/usr/bin/python3; fi
  for name in $system python3 $(for number in $PYTHONS; do echo "python$number"; done); do
    path=$(command -v "$name") || continue
    version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case " $PYTHONS " in *" $version "* | "  ") python=$path && return 0 ;; esac
    found="$found $version"
  done
}

check_python() {
  find_python
  if [ -z "$python" ] && [ -n "$found" ]; then
    fail "this bundle needs Python $(say "$PYTHONS" | sed 's/ / or /g'), here is$found: use a system that has one of them"
  fi
}

# shellcheck disable=SC2086  # a list
csi_packages_exist() { apt-cache show $CSI_PACKAGES >/dev/null 2>&1; }

add_csi_packages() {
  has_camera_module || return 0
  say "This machine has a camera module, which needs $CSI_PACKAGES."
  # A fresh system has no package lists.
  if ! csi_packages_exist && [ "$(id -u)" = 0 ] && [ -z "$dry" ]; then apt-get -q update >/dev/null 2>&1 || true; fi
  if csi_packages_exist; then
    PACKAGES="$PACKAGES $CSI_PACKAGES"
  else
    say "This system does not offer $CSI_PACKAGES, so only USB cameras and streams can be used. Raspberry Pi OS has it."
  fi
}

missing_packages() {
  for package in $PACKAGES; do
    # shellcheck disable=SC2016  # dpkg's own $
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
      installed) ;;
      *) printf '%s ' "$package" ;;
    esac
  done
}

# apt-get's plan: the packages that it would bring, one a line; those that it would only upgrade are not ours to remove.
planned() {
  # shellcheck disable=SC2086  # a list
  apt-get -s install --no-install-recommends $1 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }'
}

# Sets $missing, and $new with all that would come; says them and asks.
plan_packages() {
  missing='' new=''
  if ! command -v dpkg-query >/dev/null; then
    say "No Debian: what it calls $PACKAGES must be here."
    return 0
  fi
  missing=$(missing_packages)
  missing=${missing% }
  [ -n "$missing" ] || return 0
  say "System packages that are missing: $missing"
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then
    fail "only root can install them: sudo apt-get install --no-install-recommends $missing"
  fi
  new=$(planned "$missing")
  if [ -z "$new" ] && [ -z "$dry" ]; then
    apt-get -q update >/dev/null || fail "apt-get update failed: is there a network?"
    new=$(planned "$missing")
    [ -n "$new" ] || fail "apt-get cannot install $missing: apt-get install $missing says why"
  fi
  [ -z "$new" ] || say "With what they need, $(say "$new" | wc -l) packages: $(say "$new" | tr '\n' ' ')"
  confirm "Install them?"
}

install_packages() {
  [ -n "$missing" ] || return 0
  for package in $new; do remember "package $package"; done
  # shellcheck disable=SC2086
  run env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing ||
    fail "apt-get failed: what it says is above"
}

# The prefix is ours when it has our record, or holds nothing.
check_prefix() {
  if [ ! -f "$record" ] && [ -e "$prefix" ] && [ -n "$(ls -A "$prefix" 2>/dev/null || echo file)" ]; then
    fail "$prefix holds something else: choose another --prefix"
  fi
  above=$prefix
  while [ ! -e "$above" ]; do above=$(dirname "$above"); done
  if [ ! -d "$above" ] || [ ! -w "$above" ] && [ -z "$dry" ]; then
    fail "$prefix cannot be written: use sudo, or --prefix with a folder of your own"
  fi
}

open_prefix() {
  [ -z "$dry" ] || return 0
  mkdir -p "$prefix"
  [ -f "$record" ] || : >"$record"
}

# Written before the thing is done, so that --undo finds it also after a power cut.
remember() {
  [ -n "$dry" ] || grep -qxF "$1" "$record" || say "$1" >>"$record"
}

make_environment() {
  seen=false
  [ -z "$SITE" ] || seen=true
  if [ -d "$prefix/venv/lib/python$version/site-packages/pip" ] &&
    grep -q "include-system-site-packages = $seen" "$prefix/venv/pyvenv.cfg"; then
    return 0
  fi
  say "Making $prefix/venv with Python $version."
  # shellcheck disable=SC2086  # empty, or one option
  run "$python" -m venv --clear $SITE "$prefix/venv" || fail "Python $version makes no environment: is python3-venv here?"
}

pip_install() {
  "$prefix/venv/bin/python" -m pip --disable-pip-version-check --no-input install --only-binary :all: "$@" \
    >"$prefix/pip.log" 2>&1
}

# Installs from the wheel folders alone if they contain all packages, otherwise from the package index too.
install_from() {
  set -- --find-links "$here/wheels" ${links:+--find-links "$links"} "$@"
  if pip_install --no-index "$@"; then return 0; fi
  pip_install "$@" && return 0
  reason=$(sed -n 's/^ERROR: //p' "$prefix/pip.log" | head -n 1)
  fail "pip: ${reason:-it failed} (all of it: $prefix/pip.log; wheels that are in no package index: --find-links DIR)"
}

# The code in a wheel will run on this device, so a wheel of this bundle is installed only if its digest is the one in
# manifest.json. Wheels that were added to the folder are accepted, except for another version of edgerec.
check_wheels() {
  if [ -n "$dry" ] && ! command -v "$python" >/dev/null; then return 0; fi
  changed=$("$python" -c '
import hashlib, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
has_edgerec = any(name.startswith("wheels/edgerec-") for name in listed)
for path in sorted(folder.glob("wheels/*")):
    name = f"wheels/{path.name}"
    if name not in listed:
        changed = has_edgerec and path.name.lower().startswith("edgerec-")
    else:
        changed = hashlib.sha256(path.read_bytes()).hexdigest() != listed[name]
    if changed:
        print(name)
        break
' "$here" 2>/dev/null) || fail "$here/manifest.json cannot be read: copy the whole bundle here again"
  [ -z "$changed" ] ||
    fail "$here/$changed is not the file that manifest.json lists, so nothing is installed: copy or export the bundle again"
}

install_wheels() {
  say "Installing what $here/requirements.txt names; on a small machine this takes minutes."
  [ -z "$dry" ] || return 0
  if [ "$(bits)" = 32 ] && [ "$(uname -m)" = aarch64 ]; then
    # pip takes such a system for a 64-bit one where it asks what a package needs. NumPy and OpenCV are the system's.
    install_from --no-deps -r "$here/requirements.txt"
    install_from 'typer>=0.15' 'starlette>=1.0' 'uvicorn>=0.40'
  else
    install_from -r "$here/requirements.txt"
  fi
  renew_edgerec
}

# pip does not replace an installed edgerec of the same version, although the wheel in this bundle may be newer.
renew_edgerec() {
  for wheel in "$here"/wheels/edgerec-*.whl; do
    [ -f "$wheel" ] || continue
    sum=$(cksum <"$wheel")
    if [ "$(cat "$prefix/.edgerec-wheel" 2>/dev/null)" != "$sum" ]; then
      pip_install --no-deps --no-index --force-reinstall "$wheel" || fail "pip: $wheel cannot be installed"
      say "$sum" >"$prefix/.edgerec-wheel"
    fi
  done
}

copy_bundle() {
  [ "$here" != "$prefix/bundle" ] || return 0
  say "Copying the bundle to $prefix/bundle."
  [ -z "$dry" ] || return 0
  # Copies only the files that manifest.json lists. They are written beside the destination and then renamed.
  "$prefix/venv/bin/python" -c '
import sys
from edgerec.contract.bundle import Bundle
Bundle.open(sys.argv[1]).copy(sys.argv[2], overwrite=True)
' "$here" "$prefix/bundle" || fail "$here was not copied to $prefix/bundle: copy the whole bundle here again"
}

check_service() {
  [ -n "$service" ] || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "--service needs root: sudo sh install.sh --service"; fi
  [ -d /etc/systemd/system ] || fail "there is no systemd here, which --service is for"
  if [ -e "$UNIT" ] && ! grep -qsxF "unit $UNIT" "$record"; then
    fail "$UNIT is there already, and not by this --prefix: undo it where it was installed"
  fi
}

booted() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

install_service() {
  [ -n "$service" ] || return 0
  remember "unit $UNIT"
  if [ -z "$dry" ]; then
    sed "s|/opt/edgerec|$prefix|g" "$here/edgerec.service" >"$UNIT.new"
    mv "$UNIT.new" "$UNIT"
  fi
  if [ ! -e "$OPTIONS" ] && [ -z "$dry" ]; then
    token=$(head -c 18 /dev/urandom | base64 | tr '+/' '-_')
    (
      umask 077
      cat >"$OPTIONS" <<END
# Options of edgerec camera for the service. After a change: systemctl restart edgerec
# --source auto uses the camera module of a Raspberry Pi if there is one, otherwise the first USB camera.
# Save images with uncertain predictions: --save low-confidence --save-dir /var/lib/edgerec/images
# Serve the web page to the network: --web 0.0.0.0:8000
# An address with a password: add a line CAMERA=rtsp://USER:PASSWORD@HOST/PATH here, and use --source env:CAMERA
OPTIONS="--source auto --headless --web 127.0.0.1:8000"
# The web page asks for this token.
EDGEREC_WEB_TOKEN=$token
END
    )
    remember "options $OPTIONS $(cksum <"$OPTIONS")"
  fi
  if [ -e "$OPTIONS" ]; then run chmod o-rwx "$OPTIONS"; fi # it may be from a version that let all users read it
  say "The service is $UNIT, its options are in $OPTIONS."
  if booted; then
    run systemctl daemon-reload
    run systemctl enable edgerec.service
    run systemctl restart edgerec.service
  fi
}

tell() {
  say
  say 'Type:'
  say "  $prefix/venv/bin/edgerec camera $prefix/bundle --source auto --headless"
  say "  $prefix/venv/bin/edgerec doctor --bundle $prefix/bundle     (says what is missing for that)"
  if [ -n "$service" ]; then
    say '  systemctl status edgerec'
    token=$(sed -n 's/^EDGEREC_WEB_TOKEN=//p' "$OPTIONS" 2>/dev/null || true)
    say
    say "Predictions are at http://127.0.0.1:8000/${token:+?token=$token}"
    say 'From another computer, first type there: ssh -L 8000:127.0.0.1:8000 USER@THIS_DEVICE'
  else
    say '  sudo sh install.sh --service     (to start it with the machine)'
  fi
}

install() {
  check_machine
  check_python
  [ -f "$here/requirements.txt" ] || fail "$here is not a whole bundle: it has no requirements.txt"
  check_service
  check_prefix
  add_csi_packages
  plan_packages
  open_prefix
  install_packages
  if [ -z "$python" ]; then check_python; fi
  if [ -z "$python" ]; then
    [ -n "$dry" ] || fail "there is no Python: sudo apt-get install python3"
    python=python3 version=${PYTHONS%% *} # it would be there by now
  fi
  check_wheels
  make_environment
  install_wheels
  copy_bundle
  run "$prefix/venv/bin/edgerec" verify "$prefix/bundle"
  install_service
  tell
}

# Those that the script brought, without which nothing else would go too.
remove_packages() {
  brought=$(sed -n 's/^package //p' "$record" | tr '\n' ' ')
  [ -n "$brought" ] || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "only root can remove $brought: sudo sh install.sh --undo"; fi
  # shellcheck disable=SC2086
  gone=$(apt-get -s remove $brought 2>/dev/null | awk '$1 == "Remv" { print $2 }')
  for package in $gone; do
    case " $brought " in
      *" $package "*) ;;
      *) say "These system packages stay, because $package needs them by now: $brought" && return 0 ;;
    esac
  done
  [ -n "$gone" ] || return 0
  say "System packages that were installed with it: $brought"
  confirm "Remove them?"
  # shellcheck disable=SC2086
  run env DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge $brought
}

remove_service() {
  grep -qxF "unit $UNIT" "$record" || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "only root can remove $UNIT: sudo sh install.sh --undo"; fi
  if booted; then run systemctl disable --now edgerec.service; fi
  run rm -f "$UNIT"
  if [ -e "$OPTIONS" ]; then
    if grep -qxF "options $OPTIONS $(cksum <"$OPTIONS")" "$record"; then
      run rm -f "$OPTIONS"
    else
      say "$OPTIONS stays: it was changed, or there before."
    fi
  fi
  if booted; then run systemctl daemon-reload; fi
  if [ -e /var/lib/edgerec ]; then say "/var/lib/edgerec stays: it is what the camera saved."; fi
}

undo() {
  [ -f "$record" ] || fail "nothing to undo: $prefix was not installed by this script (--prefix DIR names another place)"
  [ -w "$prefix" ] || [ -n "$dry" ] || fail "$prefix cannot be written: sudo sh install.sh --undo"
  remove_service
  remove_packages
  run rm -rf "$prefix/venv" "$prefix/bundle" "$prefix/pip.log" "$prefix/.edgerec-wheel"
  run rm -f "$record"
  [ -n "$dry" ] || rmdir "$prefix" 2>/dev/null || say "$prefix stays: there is something else in it."
  say "Undone."
}

prefix=/opt/edgerec links='' service='' yes='' dry='' what=install
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --find-links)
      [ $# -gt 1 ] || { say "$1 needs a folder; --help shows the options" >&2 && exit 2; }
      if [ "$1" = --prefix ]; then prefix=$2; else links=$2; fi
      shift
      ;;
    --service) service=yes ;;
    --yes | -y) yes=yes ;;
    --dry-run) dry=yes ;;
    --undo) what=undo ;;
    --help | -h) usage && exit 0 ;;
    *) say "unknown option $1; --help shows the options" >&2 && exit 2 ;;
  esac
  shift
done
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
case $prefix in /*) ;; *) prefix=$(pwd -P)/$prefix ;; esac
case $prefix in
  *[!A-Za-z0-9/._-]* | *..* | /) fail "--prefix is '$prefix': expected a path of letters, digits and / . _ -" ;;
esac
prefix=${prefix%/}
record=$prefix/.edgerec-brought
if [ -n "$links" ]; then
  links=$(CDPATH='' cd -- "$links" 2>/dev/null && pwd -P) || fail "--find-links: there is no such folder"
fi
cd / # or Python would take modules from where the person stands
"$what"
