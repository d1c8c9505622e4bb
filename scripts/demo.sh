#!/usr/bin/env bash
# Plays podmark's main job on a real IPVS kernel: two pods, a client outside, IPVS
# services, a policy; who reaches what before and after. It boots the lab, builds a
# node there out of namespaces (below, in "node"), and leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} != node ]]; then
  scripts/deps.sh
  scripts/build.sh
  scripts/tools.sh cni
  echo "booting a kernel with IPVS ..."
  exec scripts/lab.sh "exec scripts/demo.sh node"
fi

modprobe -a ip_vs ip_vs_rr dummy
export CNI_PATH=$PWD/bin:$PWD/bin/cni
demo=/run/demo
mkdir -p "$demo"

step() { printf '\n== %s\n' "$*"; }

# serve NETNS ADDRESS:PORT starts a web server there; it listens when this returns.
serve() { ip netns exec "$1" busybox httpd -p "$2" -h "$demo"; }

# connect NETNS ADDRESS:PORT opens a TCP connection, or does not: an emulated machine may be slow.
connect() { ip netns exec "$1" timeout 15 bash -c ": <>/dev/tcp/${2%:*}/${2#*:}" 2>/dev/null; }

# service ADDRESS:PORT BACKEND is what kube-proxy does in IPVS mode.
service() {
  $node ipvsadm --add-service --tcp-service "$1" --scheduler rr
  $node ipvsadm --add-server --tcp-service "$1" --real-server "$2" --masquerading
}

step "a node in IPVS mode (10.0.0.1) and a machine outside (10.0.0.9)"
ip netns add node
ip netns add outside
node="ip netns exec node"
ip -n node link set lo up
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

# pod NAME attaches a pod labelled app=NAME as a runtime would, with cnitool.
pod() {
  mkdir -p "$demo/net.d/$1"
  sed "s/@APP@/$1/" test/demo/ptp.conflist >"$demo/net.d/$1/10-demo.conflist"
  ip netns add "$1"
  ip -n "$1" link set lo up
  CAP_ARGS=$2 NETCONFPATH=$demo/net.d/$1 CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=$1" \
    $node bin/cni/cnitool add demo "/run/netns/$1" >"$demo/$1.json"
}
step "two pods through ptp + host-local + portmap + podmark, by cnitool"
pod web '{"portMappings": [{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}]}'
pod client '{}'
web=$(ip -n web -4 -oneline address show dev eth0 | awk '{split($4, a, "/"); print a[1]}')
$node bin/podmarkctl list

step "services of the web pod: ClusterIP, external IP, NodePorts in and out of the range"
for address in 10.96.0.10:80 203.0.113.7:80 10.0.0.1:30080 10.0.0.1:40080; do
  service $address "$web:8080"
done
$node ipvsadm -Ln
serve web "$web:8080"
serve node 10.0.0.1:9090
serve outside 10.0.0.9:80

flows=(
  "client|$web:8080|the web pod"
  "client|10.96.0.10:80|its ClusterIP"
  "client|203.0.113.7:80|its external IP"
  "client|10.0.0.1:30080|its NodePort"
  "client|10.0.0.1:9090|a process on the node"
  "client|10.0.0.9:80|a machine outside"
  "outside|$web:8080|the web pod"
  "outside|10.96.0.10:80|its ClusterIP"
  "outside|203.0.113.7:80|its external IP"
  "outside|10.0.0.1:30080|its NodePort"
  "outside|10.0.0.1:40080|a NodePort outside the range"
  "outside|10.0.0.1:8088|its host port"
  "node|$web:8080|the web pod (a probe)"
  "node|10.96.0.10:80|its ClusterIP"
)

# try runs every flow at once and prints yes or no for each, in order.
try() {
  local i from to
  for i in "${!flows[@]}"; do
    IFS='|' read -r from to _ <<<"${flows[i]}"
    {
      if connect "$from" "$to"; then echo yes; else echo no; fi >"$demo/flow-$i"
    } &
  done
  wait
  for i in "${!flows[@]}"; do cat "$demo/flow-$i"; done
}

mapfile -t before < <(try)
step "policy"
cat test/demo/policies.yaml
$node bin/podmarkctl apply -f test/demo/policies.yaml
mapfile -t after < <(try)

step "who reaches what"
printf '%-8s %-18s %-30s %-7s %s\n' FROM TO "WHICH IS" BEFORE AFTER
for i in "${!flows[@]}"; do
  IFS='|' read -r from to what <<<"${flows[i]}"
  printf '%-8s %-18s %-30s %-7s %s\n' "$from" "$to" "$what" "${before[i]}" "${after[i]}"
done
step "podmarkctl list"
$node bin/podmarkctl list

# The demo is a promise too: it fails when a line is not as the policy says.
expected="yes yes yes yes no no no no no no no no yes yes"
[[ ${before[*]} != *no* ]] || { echo "demo: without a policy something is not reached" >&2; exit 1; }
[[ ${after[*]} == "$expected" ]] || { echo "demo: with the policy, want: $expected" >&2; exit 1; }
