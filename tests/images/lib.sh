# Shared by the image builders: where things are cached, messages, and the kernel that small images boot.
# Sourced, never run.

CACHE="${REHOST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rehost}"
PATH="$PATH:/usr/sbin:/sbin"

# What a small guest's /lib/modules holds: its own drivers, and those of the machines it may move to.
MODULES=(
  ahci sd_mod vmw_pvscsi e1000 e1000e vmxnet3
  nvme nvme_core ena virtio_pci virtio_blk virtio_net virtio_scsi xen-blkfront xen-netfront
  ext4 crc32c_generic crc32c_intel fat vfat nls_cp437 nls_ascii nls_iso8859-1
)

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# need COMMAND…: stops with the remedy when one of them is missing.
need() {
  local command
  for command in "$@"; do
    command -v "$command" >/dev/null || die "$command is missing; run scripts/install-deps build test"
  done
}

# with_lock NAME COMMAND…: two builders that run at once must not fill the same cache entry.
with_lock() {
  local lock="$CACHE/$1.lock"
  shift
  mkdir -p "$CACHE"
  (
    flock 9
    "$@"
  ) 9>"$lock"
}

# kernel_dir: sets KERNEL_DIR, which holds vmlinuz, version and modules/ (the modules of MODULES and what they need).
kernel_dir() {
  local key
  key=$(printf '%s\n' "${MODULES[@]}" | cat - "$IMAGES/lib.sh" | sha256sum | cut -c1-16)
  KERNEL_DIR="$CACHE/kernel/$key"
  [ -e "$KERNEL_DIR/version" ] || with_lock kernel fetch_kernel
}

# Debian's generic kernel, from the apt sources of this machine. It is unpacked, not installed.
fetch_kernel() {
  [ -e "$KERNEL_DIR/version" ] && return
  local package work
  package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -1)
  [ -n "$package" ] || die "apt knows no linux-image-amd64; run scripts/install-deps test, which refreshes its lists"
  work=$(mktemp -d "$CACHE/kernel.XXXXXX")
  # Debian's apt user cannot write here and does not need to: the download is checked against the signed lists.
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package") ||
    { rm -rf "$work"; die "could not download $package"; }
  dpkg -x "$work"/*.deb "$work/x"
  pick_modules "$work/x" "$work/out"
  mkdir -p "$CACHE/kernel"
  rm -rf "$KERNEL_DIR"
  mv "$work/out" "$KERNEL_DIR"
  rm -rf "$work"
}

# pick_modules UNPACKED OUT: copies the kernel and the closure of MODULES, including soft dependencies.
pick_modules() {
  local from="$1" out="$2" version tree
  version=$(basename "$from"/lib/modules/*)
  tree="$from/lib/modules/$version"
  depmod -b "$from" "$version"
  mkdir -p "$out/modules"
  cp "$from/boot/vmlinuz-$version" "$out/vmlinuz"
  cp "$from/boot/config-$version" "$out/config"
  module_files "$tree" "${MODULES[@]}" >"$out/files"
  (cd "$tree" && tar cf - modules.order modules.builtin modules.builtin.modinfo -T "$out/files") | tar xf - -C "$out/modules"
  echo "$version" >"$out/version"
}

# module_files TREE NAME…: the .ko files of the modules and of everything they need, relative to TREE.
module_files() {
  local tree="$1"
  shift
  awk -v wanted="$*" '
    function name(path) { sub(/.*\//, "", path); sub(/\.ko.*/, "", path); gsub(/-/, "_", path); return path }
    FILENAME ~ /dep$/ && FILENAME !~ /softdep$/ { sub(/:/, "", $1); n = name($1); file[n] = $1
      for (i = 2; i <= NF; i++) needs[n] = needs[n] " " name($i); next }
    $1 == "softdep" { n = $2; gsub(/-/, "_", n)
      for (i = 3; i <= NF; i++) if ($i !~ /:$/) { m = $i; gsub(/-/, "_", m); needs[n] = needs[n] " " m } }
    END {
      count = split(wanted, queue, " ")
      for (i = 1; i <= count; i++) {
        n = queue[i]; gsub(/-/, "_", n)
        if (n in seen || !(n in file)) continue
        seen[n] = 1; print file[n]
        more = split(needs[n], next_ones, " ")
        for (j = 1; j <= more; j++) queue[++count] = next_ones[j]
      }
    }' "$tree/modules.dep" "$tree/modules.softdep"
}
