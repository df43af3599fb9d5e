#!/bin/sh
# Installs this bundle on this machine. For the options, type: sh install.sh --help
set -eu
umask 022

# Requirements of the bundle, inserted by edgerec export.
ARCH=@ARCH@
PYTHONS=@PYTHONS@
PACKAGES=@PACKAGES@
SITE=@SITE@
# Debian packages for a camera module (CSI), if the bundle supports one.
CSI_PACKAGES=@CSI@

UNIT=/etc/systemd/system/edgerec.service
CONFIG_DIR=/etc/edgerec
CONFIG=$CONFIG_DIR/camera.toml
SECRETS=$CONFIG_DIR/secrets.env

usage() {
  cat <<END
Usage: sh install.sh [OPTION]...
Install this bundle and its requirements into a virtual environment, and verify the bundle there.
The script can be run again to update an installation to the bundle in this folder.

  --prefix DIR      folder to install into [default: /opt/edgerec]
  --find-links DIR  also use the wheels in this folder, e.g. to install without a network
  --service         also install a service that starts at boot: $UNIT, $CONFIG
  --any-arch        install even if this system's architecture is not that of the bundle's target
  --yes             install or remove system packages without asking
  --dry-run         show the steps without changing anything
  --undo            remove everything that this script installed, and nothing else
  --help            show this help and exit
END
}

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command that changes the system. With --dry-run, prints the command instead.
run() {
  if [ -n "$dry" ]; then printf 'would run: %s\n' "$*"; else "$@"; fi
}

# Prints the step that starts, e.g. "Creating" for the verb "create". With --dry-run, prints that it would be performed.
announce() {
  if [ -n "$dry" ]; then say "Would $1 $3"; else say "$2 $3"; fi
}

confirm() {
  if [ -n "$yes" ] || [ -n "$dry" ]; then return 0; fi
  [ -t 0 ] || fail "cannot ask '$1', because stdin is not a terminal: to agree, add --yes"
  printf '%s [y/N] ' "$1"
  read -r answer || answer=
  case $answer in [yY]*) ;; *) fail "stopped, because the answer was not yes" ;; esac
}

# Prints 32 or 64 for the system's programs. The kernel may differ: Raspberry Pi OS 32-bit can run a 64-bit kernel.
bits() { getconf LONG_BIT 2>/dev/null || echo 64; }

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "this bundle is for Linux, but this system is $(uname -s)"
  [ -z "$any_arch" ] || return 0
  machine=$(uname -m)
  case $(bits)$machine in 32aarch64 | 32armv8l) machine=armv7l ;; 32x86_64) machine=i686 ;; esac
  case " $ARCH " in
    *" $machine "* | "  ") ;;
    *) fail "this bundle is for $ARCH, but this system is $machine: export the bundle again with a --target for $machine" ;;
  esac
}

# The kernel's driver for the camera module is unicam on a Raspberry Pi 4 or older, and rp1-cfe on a Raspberry Pi 5.
has_camera_module() {
  [ -n "$CSI_PACKAGES" ] && cat "${SYSFS:-/sys}"/class/video4linux/*/name 2>/dev/null | grep -Eq 'unicam|rp1-cfe'
}

# Sets $python and $version. If no suitable Python is found, sets $unsuitable to the versions that were found.
find_python() {
  python='' unsuitable='' system=''
  # Debian's packages, such as picamera2, are visible only to the system's own Python.
  if has_camera_module; then system=/usr/bin/python3; fi
  for name in $system python3 $(for number in $PYTHONS; do echo "python$number"; done); do
    path=$(command -v "$name") || continue
    version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case " $PYTHONS " in *" $version "* | "  ") python=$path && return 0 ;; esac
    unsuitable="$unsuitable $version"
  done
}

check_python() {
  find_python
  if [ -z "$python" ] && [ -n "$unsuitable" ]; then
    supported=$(say "$PYTHONS" | sed 's/ / or /g')
    fail "this bundle needs Python $supported, but this system has$unsuitable: install a supported version"
  fi
}

# shellcheck disable=SC2086  # the variable contains several words
csi_packages_exist() { apt-cache show $CSI_PACKAGES >/dev/null 2>&1; }

add_csi_packages() {
  has_camera_module || return 0
  say "This machine has a camera module, which needs $CSI_PACKAGES."
  # A fresh system has no package lists.
  if ! csi_packages_exist && [ "$(id -u)" = 0 ] && [ -z "$dry" ]; then apt-get -q update >/dev/null 2>&1 || true; fi
  if csi_packages_exist; then
    PACKAGES="$PACKAGES $CSI_PACKAGES"
  else
    say "$CSI_PACKAGES is not available, so only USB cameras and streams can be used. Raspberry Pi OS provides it."
  fi
}

missing_packages() {
  for package in $PACKAGES; do
    # shellcheck disable=SC2016  # dpkg expands this $
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
      installed) ;;
      *) printf '%s ' "$package" ;;
    esac
  done
}

# Prints the packages that apt-get would newly install, one per line. Packages that it would only upgrade are left out,
# so that --undo does not remove them.
new_packages() {
  # shellcheck disable=SC2086  # the variable contains several words
  apt-get -s install --no-install-recommends $1 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }'
}

# Sets $missing, and $new to these packages and their dependencies. Prints both, and asks for permission.
plan_packages() {
  missing='' new=''
  if ! command -v dpkg-query >/dev/null; then
    say "This system is not Debian: install the equivalents of the Debian packages $PACKAGES yourself."
    return 0
  fi
  missing=$(missing_packages)
  missing=${missing% }
  [ -n "$missing" ] || return 0
  say "System packages that are missing: $missing"
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then
    fail "only root can install system packages: sudo apt-get install --no-install-recommends $missing"
  fi
  new=$(new_packages "$missing")
  if [ -z "$new" ] && [ -z "$dry" ]; then
    apt-get -q update >/dev/null || fail "apt-get update failed: check the network connection"
    new=$(new_packages "$missing")
    [ -n "$new" ] || fail "apt-get cannot install $missing: type apt-get install $missing to see the reason"
  fi
  [ -z "$new" ] || say "With dependencies, these are $(say "$new" | wc -l) packages: $(say "$new" | tr '\n' ' ')"
  confirm "Install these packages?"
}

install_packages() {
  [ -n "$missing" ] || return 0
  for package in $new; do remember "package $package"; done
  # shellcheck disable=SC2086
  run env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing ||
    fail "apt-get failed: see its messages above"
}

# The prefix must be empty, or have the record of an earlier installation.
check_prefix() {
  if [ ! -f "$record" ] && [ -e "$prefix" ] && [ -n "$(ls -A "$prefix" 2>/dev/null || echo file)" ]; then
    fail "$prefix contains files that this script did not install: choose another --prefix"
  fi
  parent=$prefix
  while [ ! -e "$parent" ]; do parent=$(dirname "$parent"); done
  if [ ! -d "$parent" ] || [ ! -w "$parent" ] && [ -z "$dry" ]; then
    fail "$prefix is not writable: use sudo, or choose a writable folder with --prefix"
  fi
}

open_prefix() {
  [ -z "$dry" ] || return 0
  mkdir -p "$prefix"
  [ -f "$record" ] || : >"$record"
}

# Adds an entry to the record. This is done before the installation itself, so that --undo works after a power failure.
remember() {
  [ -n "$dry" ] || grep -qxF "$1" "$record" || say "$1" >>"$record"
}

make_environment() {
  site_packages=false
  [ -z "$SITE" ] || site_packages=true
  if [ -d "$prefix/venv/lib/python$version/site-packages/pip" ] &&
    grep -q "include-system-site-packages = $site_packages" "$prefix/venv/pyvenv.cfg"; then
    return 0
  fi
  announce create Creating "$prefix/venv with Python $version."
  # shellcheck disable=SC2086  # SITE is empty or one option
  run "$python" -m venv --clear $SITE "$prefix/venv" ||
    fail "Python $version cannot create a virtual environment: install python3-venv"
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
  fail "pip: ${reason:-the installation failed} (see $prefix/pip.log; add --find-links DIR to use your own wheels)"
}

# Wheels contain code that will run on this device, so a wheel that is listed in manifest.json is installed only if its
# digest is correct. Other wheels in the folder are accepted, except those of edgerec if manifest.json lists one.
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
    fail "$here/$changed differs from manifest.json, so it is not installed: copy the bundle here again"
}

install_wheels() {
  announce install Installing "the packages in $here/requirements.txt. On a small device, this takes minutes."
  [ -z "$dry" ] || return 0
  if [ "$(bits)" = 32 ] && [ "$(uname -m)" = aarch64 ]; then
    # pip resolves dependencies for the 64-bit kernel. Therefore dependencies are installed explicitly, except NumPy and
    # OpenCV, which are system packages.
    install_from --no-deps -r "$here/requirements.txt"
    install_from 'typer>=0.15' 'starlette>=1.0' 'uvicorn>=0.40' 'paho-mqtt>=2.0' 'prometheus-client>=0.20' 'gpiozero>=2.0'
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
      pip_install --no-deps --no-index --force-reinstall "$wheel" ||
        fail "pip cannot install $wheel: see $prefix/pip.log"
      say "$sum" >"$prefix/.edgerec-wheel"
    fi
  done
}

copy_bundle() {
  [ "$here" != "$prefix/bundle" ] || return 0
  announce copy Copying "the bundle to $prefix/bundle."
  [ -z "$dry" ] || return 0
  # Copies only the files that manifest.json lists. They are written beside the destination and then renamed.
  "$prefix/venv/bin/python" -c '
import sys
from edgerec.contract.bundle import Bundle
from edgerec.errors import EdgerecError
try:
    Bundle.open(sys.argv[1]).copy(sys.argv[2], overwrite=True)
except (EdgerecError, OSError) as error:
    sys.exit(f"error: {error}")
' "$here" "$prefix/bundle" || exit 1
}

check_service() {
  [ -n "$service" ] || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "--service needs root: sudo sh install.sh --service"; fi
  [ -d /etc/systemd/system ] || fail "--service needs systemd, which is missing here: install without --service"
  if [ -e "$UNIT" ] && ! grep -qsxF "unit $UNIT" "$record"; then
    fail "$UNIT exists, but was not installed with this --prefix: run install.sh --undo with the other --prefix"
  fi
}

systemd_is_running() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

# Writes the configuration of the service, unless it exists already.
write_config() {
  [ -n "$dry" ] || mkdir -p "$CONFIG_DIR"
  if [ ! -e "$CONFIG" ] && [ -z "$dry" ]; then
    cat >"$CONFIG" <<END
# Configuration of the camera service. After a change, run: systemctl restart edgerec
# To write a file with all keys and their explanations, run:
#   $prefix/venv/bin/edgerec camera $prefix/bundle --write-config all.toml
# Passwords and tokens belong in $SECRETS.

# auto uses the camera module of a Raspberry Pi if there is one, otherwise the first USB camera. For an address with a
# password, write "env:CAMERA" here, and add the line CAMERA=rtsp://USER:PASSWORD@HOST/PATH to $SECRETS.
sources = ["auto"]
output = "text"

# The web page shows the predictions. To serve it to the network, use the address "0.0.0.0:8000".
[web]
address = "127.0.0.1:8000"

# To save images with uncertain predictions, remove the # from these lines.
# [images]
# folder = "/var/lib/edgerec/images"
END
    remember "options $CONFIG $(cksum <"$CONFIG")"
  fi
  if [ ! -e "$SECRETS" ] && [ -z "$dry" ]; then
    token=$(head -c 18 /dev/urandom | base64 | tr '+/' '-_')
    (
      umask 077
      cat >"$SECRETS" <<END
# Environment variables of the camera service. Only root can read this file. After a change, run:
# systemctl restart edgerec
# Other variables: EDGEREC_MQTT_PASSWORD, EDGEREC_WEBHOOK_SECRET, and each NAME of an env:NAME in $CONFIG.
# The web page asks for this token.
EDGEREC_WEB_TOKEN=$token
END
    )
    remember "options $SECRETS $(cksum <"$SECRETS")"
  fi
  if [ -e "$SECRETS" ]; then run chmod go-rwx "$SECRETS"; fi
}

install_service() {
  [ -n "$service" ] || return 0
  announce install Installing "the service $UNIT with the configuration $CONFIG."
  remember "unit $UNIT"
  if [ -z "$dry" ]; then
    sed "s|/opt/edgerec|$prefix|g" "$here/edgerec.service" >"$UNIT.new"
    mv "$UNIT.new" "$UNIT"
  fi
  write_config
  if systemd_is_running; then
    run systemctl daemon-reload
    run systemctl enable edgerec.service
    run systemctl restart edgerec.service
  fi
}

show_next_steps() {
  say
  say 'To start the camera, or to check the installation, run:'
  say "  $prefix/venv/bin/edgerec camera $prefix/bundle --source auto --headless"
  say "  $prefix/venv/bin/edgerec doctor --bundle $prefix/bundle     (reports problems)"
  if [ -n "$service" ]; then
    say '  systemctl status edgerec'
    token=$(sed -n 's/^EDGEREC_WEB_TOKEN=//p' "$SECRETS" 2>/dev/null || true)
    say
    say "Predictions are at http://127.0.0.1:8000/${token:+?token=$token}"
    say 'To open this address on another computer, first run there: ssh -L 8000:127.0.0.1:8000 USER@THIS_DEVICE'
  else
    say '  sudo sh install.sh --service     (to start the camera at boot)'
  fi
}

install() {
  check_machine
  check_python
  [ -f "$here/requirements.txt" ] ||
    fail "$here is not a complete bundle, because it has no requirements.txt: copy the whole bundle here again"
  check_service
  check_prefix
  add_csi_packages
  plan_packages
  open_prefix
  install_packages
  if [ -z "$python" ]; then check_python; fi
  if [ -z "$python" ]; then
    [ -n "$dry" ] || fail "Python is not installed: sudo apt-get install python3"
    python=python3 version=${PYTHONS%% *} # a real run would have installed it
  fi
  check_wheels
  make_environment
  install_wheels
  copy_bundle
  run "$prefix/venv/bin/edgerec" verify "$prefix/bundle"
  install_service
  if [ -n "$dry" ]; then say "No changes were made (--dry-run)."; else show_next_steps; fi
}

# Removes the system packages that the script installed, unless another package depends on them.
remove_packages() {
  installed=$(sed -n 's/^package //p' "$record" | tr '\n' ' ')
  [ -n "$installed" ] || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "only root can remove $installed: sudo sh install.sh --undo"; fi
  # shellcheck disable=SC2086
  removals=$(apt-get -s remove $installed 2>/dev/null | awk '$1 == "Remv" { print $2 }')
  for package in $removals; do
    case " $installed " in
      *" $package "*) ;;
      *) say "These system packages are kept, because $package needs them: $installed" && return 0 ;;
    esac
  done
  [ -n "$removals" ] || return 0
  say "System packages that this script installed: $installed"
  confirm "Remove these packages?"
  # shellcheck disable=SC2086
  run env DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge $installed
}

remove_service() {
  grep -qxF "unit $UNIT" "$record" || return 0
  if [ "$(id -u)" != 0 ] && [ -z "$dry" ]; then fail "only root can remove $UNIT: sudo sh install.sh --undo"; fi
  if systemd_is_running; then run systemctl disable --now edgerec.service; fi
  run rm -f "$UNIT"
  for file in "$CONFIG" "$SECRETS"; do
    [ -e "$file" ] || continue
    if grep -qxF "options $file $(cksum <"$file")" "$record"; then
      run rm -f "$file"
    else
      say "$file is kept, because it was modified, or existed before the installation."
    fi
  done
  [ -n "$dry" ] || rmdir "$CONFIG_DIR" 2>/dev/null || true
  if systemd_is_running; then run systemctl daemon-reload; fi
  if [ -e /var/lib/edgerec ]; then say "/var/lib/edgerec is kept, because it contains files of the camera."; fi
}

undo() {
  [ -f "$record" ] || fail "nothing to undo: this script did not install $prefix (for another folder, add --prefix DIR)"
  [ -w "$prefix" ] || [ -n "$dry" ] || fail "$prefix is not writable: sudo sh install.sh --undo"
  remove_service
  remove_packages
  run rm -rf "$prefix/venv" "$prefix/bundle" "$prefix/pip.log" "$prefix/.edgerec-wheel"
  run rm -f "$record"
  if [ -n "$dry" ]; then say "No changes were made (--dry-run)." && return 0; fi
  rmdir "$prefix" 2>/dev/null || say "$prefix is kept, because it contains other files."
  say "The installation was removed."
}

prefix=/opt/edgerec links='' service='' any_arch='' yes='' dry='' what=install
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --find-links)
      [ $# -gt 1 ] || { say "$1 needs a folder. For the options, type: sh install.sh --help" >&2 && exit 2; }
      if [ "$1" = --prefix ]; then prefix=$2; else links=$2; fi
      shift
      ;;
    --service) service=yes ;;
    --any-arch) any_arch=yes ;;
    --yes | -y) yes=yes ;;
    --dry-run) dry=yes ;;
    --undo) what=undo ;;
    --help | -h) usage && exit 0 ;;
    *) say "unknown option $1. For the options, type: sh install.sh --help" >&2 && exit 2 ;;
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
  links=$(CDPATH='' cd -- "$links" 2>/dev/null && pwd -P) || fail "the folder of --find-links does not exist"
fi
cd / # so that Python does not import modules from the current folder
"$what"
