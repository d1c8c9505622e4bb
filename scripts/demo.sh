#!/usr/bin/env bash
# Plays podmark's main job on a real IPVS kernel, in four acts: what a firewall by source
# addresses lets through, who reaches what under a policy, what becomes of live connections, and
# what explain and drops say of it. It boots the lab, builds a node there out of namespaces
# (below), leaves nothing behind, and fails where anything is not as it says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} != node ]]; then
  scripts/deps.sh lab
  scripts/build.sh
  scripts/tools.sh cni
  echo "booting a kernel with IPVS ..."
  exec scripts/lab.sh "exec scripts/demo.sh node"
fi

modprobe -a ip_vs ip_vs_rr dummy
export CNI_PATH=$PWD/bin:$PWD/bin/cni
demo=/run/demo
mkdir -p "$demo"
mkfifo "$demo/nothing" # from which nothing is ever read

act() { printf '\n==== %s\n' "$*"; }
step() { printf '\n-- %s\n' "$*"; }
wrong() { echo "demo: $*" >&2; exit 1; }

# begin runs a command on the node beside what follows, for run to show later.
declare -A begun=()
begin() {
  local as=$demo/run-${#begun[@]}
  begun["$*"]=$as
  {
    status=0
    $node "bin/$1" "${@:2}" >"$as" 2>&1 || status=$?
    echo "$status" >"$as.status"
  } &
  echo $! >"$as.pid"
}

# run shows a command and what it says on the node. Its exit status is in $status.
run() {
  printf '$ %s\n' "$*"
  [[ -n ${begun["$*"]:-} ]] || begin "$@"
  local as=${begun["$*"]}
  wait "$(<"$as.pid")"
  status=$(<"$as.status")
  cp "$as" "$demo/said"
  cat "$demo/said"
}
# said asks whether what run has shown contains a text.
said() { grep -qF -- "$1" "$demo/said" || wrong "it does not say: $1"; }

# serve NETNS ADDRESS PORT starts a server that sends back what it gets.
serve() {
  ip netns exec "$1" busybox nc -ll -p "$3" -e cat &
  until ip netns exec "$1" bash -c ": <>/dev/tcp/$2/$3" 2>/dev/null; do sleep 0.1; done
}

# patience is how many seconds an answer may take: an emulated machine may be slow, and how slow,
# the first answers tell.
patience=30

# reach opens TCP connections at once, of flows written NUMBER ADDRESS PORT, and writes for each
# whether it got there within $patience. It is a script of its own, and starts as few processes as
# it can: each costs an emulated machine a lot.
# shellcheck disable=SC2016 # it is expanded there
reach='
  for flow; do
    set -- $flow
    echo no >"$demo/flow-$1"
    { : <>"/dev/tcp/$2/$3" && echo yes >"$demo/flow-$1"; } 2>/dev/null &
  done
  exec 9<>"$demo/nothing"
  for ((waited = 0; waited < 3 * patience; waited++)); do
    [[ $(jobs -pr) ]] || break
    read -rt 0.33 -u 9
  done
  kill -KILL $(jobs -pr) 2>/dev/null # a shell that connects hears of no other signal
'

# service ADDRESS:PORT BACKEND is what kube-proxy does in IPVS mode.
service() {
  $node ipvsadm --add-service --tcp-service "$1" --scheduler rr
  $node ipvsadm --add-server --tcp-service "$1" --real-server "$2" --masquerading
}

# pod NAME attaches a pod labelled app=NAME as a runtime would, with cnitool, and prints its address.
pod() {
  mkdir -p "$demo/net.d/$1"
  sed "s/@APP@/$1/" test/demo/ptp.conflist >"$demo/net.d/$1/10-demo.conflist"
  ip netns add "$1"
  ip -n "$1" link set lo up
  CAP_ARGS=${2:-} NETCONFPATH=$demo/net.d/$1 CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=$1" \
    $node bin/cni/cnitool add demo "/run/netns/$1" >"$demo/$1.json"
  ip -n "$1" -4 -oneline address show dev eth0 | awk '{split($4, a, "/"); print a[1]}'
}

# try runs every flow at once and prints yes or no for each, in order.
try() {
  local i from to each tries=()
  for each in client guest outside node; do
    set --
    for i in "${!flows[@]}"; do
      IFS='|' read -r from to _ <<<"${flows[i]}"
      [[ $from != "$each" ]] || set -- "$@" "$i ${to%:*} ${to#*:}"
    done
    demo=$demo patience=$patience ip netns exec "$each" bash -c "$reach" reach "$@" &
    tries+=($!)
  done
  wait "${tries[@]}" || true # of what it has ended itself
  for i in "${!flows[@]}"; do cat "$demo/flow-$i"; done
}

# table COLUMN... shows what was found of each flow, in arrays of the columns' names.
table() {
  local i from to what column line
  printf -v line '%-8s %-18s %-28s' FROM TO "WHICH IS"
  for column; do printf -v line '%s %-10s' "$line" "$column"; done
  echo "${line%"${line##*[! ]}"}"
  for i in "${!flows[@]}"; do
    IFS='|' read -r from to what <<<"${flows[i]}"
    printf -v line '%-8s %-18s %-28s' "$from" "$to" "$what"
    for column; do
      local -n found=$column
      printf -v line '%s %-10s' "$line" "${found[i]}"
    done
    echo "${line%"${line##*[! ]}"}"
  done
}

# expect WHAT IS WANT compares two lists of answers.
expect() { [[ $2 == "$3" ]] || wrong "$1: $2, want $3"; }

step "a node in IPVS mode (10.0.0.1), a machine outside (10.0.0.9), and three pods by cnitool: ptp, portmap, podmark"
ip netns add node
ip netns add outside
node="ip netns exec node"
for each in node outside; do ip -n "$each" link set lo up; done
ip -n node link add eth0 type veth peer name eth0 netns outside
ip -n node link set eth0 up
ip -n outside link set eth0 up
ip -n node address add 10.0.0.1/24 dev eth0
ip -n outside address add 10.0.0.9/24 dev eth0
ip -n outside route add default via 10.0.0.1
ip -n node link add kube-ipvs0 type dummy
ip -n node address add 10.96.0.10/32 dev kube-ipvs0
ip -n node address add 203.0.113.7/32 dev kube-ipvs0
$node sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.vs.conntrack=1
$node iptables -t mangle -N KUBE-IPTABLES-HINT # what kubelet leaves
web=$(pod web '{"portMappings": [{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}]}')
client=$(pod client)
pod guest >/dev/null
run podmarkctl list

step "services of the web pod: ClusterIP, external IP, NodePorts in and out of the range"
for address in 10.96.0.10:80 203.0.113.7:80 10.0.0.1:30080 10.0.0.1:40080; do
  service $address "$web:8080"
done
$node ipvsadm -Ln
serve web "$web" 8080
serve node 10.0.0.1 9090
serve outside 10.0.0.9 80

flows=(
  "client|$web:8080|the web pod"
  "client|10.96.0.10:80|its ClusterIP"
  "client|203.0.113.7:80|its external IP"
  "client|10.0.0.1:30080|its NodePort"
  "client|10.0.0.1:9090|a process on the node"
  "client|10.0.0.9:80|a machine outside"
  "guest|$web:8080|the web pod"
  "guest|10.96.0.10:80|its ClusterIP"
  "guest|203.0.113.7:80|its external IP"
  "guest|10.0.0.1:30080|its NodePort"
  "outside|$web:8080|the web pod"
  "outside|10.96.0.10:80|its ClusterIP"
  "outside|203.0.113.7:80|its external IP"
  "outside|10.0.0.1:30080|its NodePort"
  "outside|10.0.0.1:40080|a NodePort outside the range"
  "outside|10.0.0.1:8088|its host port"
  "node|$web:8080|the web pod (a probe)"
  "node|10.96.0.10:80|its ClusterIP"
)

act "1. The web pod is for the client alone. A firewall by source addresses is to see to it:"
start=$SECONDS
mapfile -t NOTHING < <(try)
patience=$((3 * (SECONDS - start) / 2 + 1))
expect "with nothing" "${NOTHING[*]}" "yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes"
firewall=(FORWARD -p tcp -d "$web" --dport 8080 ! -s "$client" -j DROP)
echo "$ iptables -A ${firewall[*]}"
$node iptables -A "${firewall[@]}"
mapfile -t FIREWALL < <(try)
$node iptables -D "${firewall[@]}"
table NOTHING FIREWALL
expect "with the firewall" "${FIREWALL[*]}" "yes yes yes yes yes yes no yes yes yes no yes yes yes yes no yes yes"
echo "IPVS takes what is for a service out of FORWARD: the guest and the machine outside reach the pod"
echo "by each of its services. The rule is gone again now."

act "2. podmark with a NetworkPolicy for the web pod, and one for the client"
cat test/demo/policies.yaml
step "first a live connection of the client, and one of the guest, to 10.96.0.10:80"
# live NETNS opens a connection that sends what is written to one pipe, and what comes back to another.
live() {
  mkfifo "$demo/$1.say" "$demo/$1.hear"
  ip netns exec "$1" bash -c 'exec 3<>/dev/tcp/10.96.0.10/80; cat <&3 & exec cat >&3' <"$demo/$1.say" >"$demo/$1.hear" &
}
# ask FD-TO-SAY FD-TO-HEAR WORD says a word in a connection and asks whether it comes back.
ask() {
  local heard
  echo "$3" >&"$1"
  if read -r -t "$patience" -u "$2" heard && [[ $heard == "$3" ]]; then echo answered; else echo silent; fi
}
live client
live guest
exec 4>"$demo/client.say" 5<"$demo/client.hear" 6>"$demo/guest.say" 7<"$demo/guest.hear"
of_client=$(ask 4 5 before) of_guest=$(ask 6 7 before)
echo "client: $of_client, guest: $of_guest"
expect "live connections without a policy" "$of_client $of_guest" "answered answered"
step "then the policies"
run podmarkctl apply -f test/demo/policies.yaml
said "2 policies in force"
said "3 of 3 pods policed"
ask 4 5 after >"$demo/client.after" &
asked=($!)
ask 6 7 after >"$demo/guest.after" &
asked+=($!)
begin podmarkctl explain guest 10.96.0.10:80
begin podmarkctl explain client 10.96.0.10:80
mapfile -t PODMARK < <(try)
wait "${asked[@]}"
after_client=$(<"$demo/client.after") after_guest=$(<"$demo/guest.after")
table NOTHING FIREWALL PODMARK
expect "with podmark" "${PODMARK[*]}" "yes yes yes yes no no no no no no no no no no no no yes yes"

act "3. The two live connections, asked after the apply"
echo "client: $after_client, guest: $after_guest"
expect "live connections with the policy" "$after_client $after_guest" "answered silent"
echo "What the policies forbid has ended with the apply, and what they allow goes on."

act "4. Why?"
run podmarkctl explain guest 10.96.0.10:80
expect "explain's exit status" "$status" 1
said "shop/web"
said "denied"
run podmarkctl explain client 10.96.0.10:80
expect "explain's exit status" "$status" 0
said "allowed"
run podmarkctl drops
said "shop/web"
said "shop/client"
