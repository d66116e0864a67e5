#!/bin/bash
# First boot of a replication server (Amazon Linux 2023): fetches the replicator and starts its unit. The control plane
# replaces the words between @ signs: REGION, BUCKET, and CONFIG_BASE64, the replicator's configuration (JSON, base64).
# The configuration holds a secret that is good for one use: it goes to one file, never to the log.
set -euo pipefail
umask 077
export LC_ALL=C AWS_REGION='@REGION@' AWS_DEFAULT_REGION='@REGION@' AWS_PAGER='' AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=5

readonly BUCKET='@BUCKET@'
readonly CONFIG_BASE64='@CONFIG_BASE64@'
readonly NAME=rehost-replicator
readonly PROGRAM=/usr/local/bin/$NAME
readonly CONFIG=/etc/$NAME/config.json
readonly ATTEMPTS=30 PAUSE_SECONDS=10
# A route that leads nowhere must not cost an attempt minutes.
readonly TIMEOUTS=(--cli-connect-timeout 10 --cli-read-timeout 60)

say() { echo "rehost: $*"; }

# A role, an endpoint or a route may need a minute before it is there.
retry() {
  local attempt
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    if "$@"; then return; fi
    say "attempt $attempt of $ATTEMPTS failed: $*"
    sleep "$PAUSE_SECONDS"
  done
  return 1
}

# The volumes hold other servers' disks: nothing of this one may look for RAID, volume groups or btrfs on them, least of all
# write to them. A rule file that is a link to /dev/null is none.
leave_volumes_alone() {
  local rule
  for rule in 63-md-raid-arrays 64-md-raid-assembly 65-md-incremental 69-dm-lvm 69-dm-lvm-metad 64-btrfs; do
    ln -sf /dev/null "/etc/udev/rules.d/$rule.rules"
  done
  echo 'SUBSYSTEM=="block", KERNEL=="nvme*", OPTIONS:="nowatch"' >/etc/udev/rules.d/99-rehost.rules
  chmod 0644 /etc/udev/rules.d/99-rehost.rules
  udevadm control --reload
}

# Nobody logs in here, and nobody manages it from outside: it is replaced.
close_other_doors() {
  systemctl disable --now --quiet sshd.service sshd.socket amazon-ssm-agent.service 2>/dev/null || true
}

fetch() {
  aws "${TIMEOUTS[@]}" s3api get-object --bucket "$BUCKET" --key "software/$1" "$2" >/dev/null
}

fetch_verified() {
  fetch "$NAME" "$1/$NAME" && fetch "$NAME.sha256" "$1/$NAME.sha256" &&
    (cd "$1" && sha256sum --check --strict --quiet "$NAME.sha256")
}

install_program() {
  local folder
  folder=$(mktemp -d)
  retry fetch_verified "$folder"
  install -m 0755 "$folder/$NAME" "$PROGRAM"
  rm -rf "$folder"
}

configure() {
  id "$NAME" >/dev/null 2>&1 || useradd --system --home-dir "/var/lib/$NAME" --no-create-home --shell /sbin/nologin "$NAME"
  install -d -m 0750 -o root -g "$NAME" "/etc/$NAME"
  base64 --decode <<<"$CONFIG_BASE64" >"$CONFIG"
  chown "$NAME:" "$CONFIG"
  chmod 0400 "$CONFIG"
}

# No address of the instance's metadata: the replicator needs no AWS credentials and is not to have any. Volumes are NVMe devices
# (block-blkext), which belong to the group disk. AF_UNIX is for the runtime's own pair of sockets.
write_unit() {
  cat >"/etc/systemd/system/$NAME.service" <<'UNIT'
[Unit]
Description=Keeps the staging volumes of source servers (rehost)
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=/usr/local/bin/rehost-replicator run --config /etc/rehost-replicator/config.json
Restart=always
RestartSec=5
User=rehost-replicator
Group=rehost-replicator
SupplementaryGroups=disk
StateDirectory=rehost-replicator
StateDirectoryMode=0700
UMask=0077
LimitNOFILE=65536
LimitCORE=0
OOMScoreAdjust=-500

CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=block-blkext rw
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateIPC=yes
PrivateMounts=yes
ProtectProc=invisible
ProcSubset=pid
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectClock=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
IPAddressDeny=169.254.169.254/32 fd00:ec2::254/128
SocketBindDeny=any
SocketBindAllow=tcp:1500
InaccessiblePaths=-/boot -/root -/var/lib/cloud -/var/log

[Install]
WantedBy=multi-user.target
UNIT
  chmod 0644 "/etc/systemd/system/$NAME.service"
}

main() {
  leave_volumes_alone
  close_other_doors
  install_program
  configure
  write_unit
  systemctl daemon-reload
  systemctl enable --now --quiet "$NAME.service"
  say 'the replicator was started'
}

# One that could not be set up would run, and cost, for nobody: the launch template lets it end with its power. The pause is for
# the console, which the control plane's users read.
finish() {
  local code=$?
  if [ "$code" -eq 0 ]; then return; fi
  say "the replication server could not be set up ($code); the lines above say why; it ends itself"
  sync
  sleep 5
  systemctl poweroff
}

trap finish EXIT
main
