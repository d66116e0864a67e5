#!/bin/bash
# First boot of a conversion server (Amazon Linux 2023): fetches the converter, lets it make the attached volumes boot on EC2,
# leaves its report in the bucket and shuts down, which terminates the instance. The control plane replaces the words between
# @ signs: REGION, BUCKET, and TOKEN, the conversion's.
set -euo pipefail
umask 077
export LC_ALL=C AWS_REGION='@REGION@' AWS_DEFAULT_REGION='@REGION@' AWS_PAGER='' AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=5

readonly BUCKET='@BUCKET@'
readonly PREFIX='conversions/@TOKEN@'
readonly NAME=rehost-converter
readonly PROGRAM=/usr/local/bin/$NAME
readonly WORK=/var/lib/$NAME
readonly ATTEMPTS=30 PAUSE_SECONDS=10
# A route that leads nowhere must not cost an attempt minutes.
readonly TIMEOUTS=(--cli-connect-timeout 10 --cli-read-timeout 60)
# Whatever happens, the instance does not outlive its job by much.
readonly LONGEST_LIFE_MINUTES=120 LONGEST_CONVERSION_SECONDS=6000

say() { echo "rehost: $*"; }

retry() {
  local attempt
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    if "$@"; then return; fi
    say "attempt $attempt of $ATTEMPTS failed: $*"
    sleep "$PAUSE_SECONDS"
  done
  return 1
}

# The converter alone opens the guest's disks: nothing else may assemble, activate or mount what is on them.
leave_volumes_alone() {
  local rule
  for rule in 63-md-raid-arrays 64-md-raid-assembly 65-md-incremental 69-dm-lvm 69-dm-lvm-metad; do
    ln -sf /dev/null "/etc/udev/rules.d/$rule.rules"
  done
  udevadm control --reload
}

close_other_doors() {
  systemctl disable --now --quiet sshd.service sshd.socket amazon-ssm-agent.service 2>/dev/null || true
}

fetch() {
  aws "${TIMEOUTS[@]}" s3api get-object --bucket "$BUCKET" --key "$1" "$2" >/dev/null
}

fetch_verified() {
  fetch "software/$NAME" "$WORK/$NAME" && fetch "software/$NAME.sha256" "$WORK/$NAME.sha256" &&
    (cd "$WORK" && sha256sum --check --strict --quiet "$NAME.sha256")
}

install_program() {
  retry fetch_verified
  install -m 0755 "$WORK/$NAME" "$PROGRAM"
}

# The guest's file systems are hostile input: the converter has no network, no credentials of the instance, and of the
# privileges only those for mounting and for files of other owners.
convert() {
  local capabilities='CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER CAP_FSETID CAP_MKNOD CAP_SETFCAP'
  systemd-run --quiet --collect --wait --pipe --service-type=exec --unit="$NAME" \
    --property=PrivateNetwork=yes --property=NoNewPrivileges=yes --property="CapabilityBoundingSet=$capabilities" \
    --property=ProtectSystem=strict --property=ReadWritePaths="$WORK" --property=PrivateTmp=yes \
    --property=DevicePolicy=closed --property='DeviceAllow=block-* rw' --property=ProtectHome=yes \
    --property=ProtectKernelTunables=yes --property=ProtectKernelModules=yes --property=ProtectKernelLogs=yes \
    --property=ProtectControlGroups=yes --property=ProtectClock=yes --property=ProtectHostname=yes \
    --property=RestrictRealtime=yes --property=LockPersonality=yes --property=SystemCallArchitectures=native \
    --property=RuntimeMaxSec="$LONGEST_CONVERSION_SECONDS" --property=LimitCORE=0 \
    "$PROGRAM" run --request "$WORK/spec.json" --report "$WORK/report.json"
}

# A report is a report, also of a conversion that failed: the control plane reads in it why.
upload_report() {
  [ -s "$WORK/report.json" ] || { say 'the converter left no report'; return 1; }
  retry aws "${TIMEOUTS[@]}" s3api put-object --bucket "$BUCKET" --key "$PREFIX/report.json" --body "$WORK/report.json" \
    --content-type application/json >/dev/null
  say 'the report was uploaded'
}

main() {
  shutdown --no-wall -P "+$LONGEST_LIFE_MINUTES"
  mkdir -p "$WORK"
  leave_volumes_alone
  close_other_doors
  # File systems the guest may have, should they be modules here.
  modprobe --all --quiet ext4 xfs btrfs vfat nls_cp437 nls_ascii nls_iso8859_1 || true
  install_program
  retry fetch "$PREFIX/spec.json" "$WORK/spec.json"
  convert || say "the converter ended with $?"
  upload_report
}

# Not `shutdown now`: the console must have what was said before the instance goes.
finish() {
  local code=$?
  say "the conversion server ends with $code"
  sync
  sleep 5
  shutdown --no-wall -c || true
  systemctl poweroff
}

trap finish EXIT
main
