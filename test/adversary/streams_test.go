package adversary_test

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// denyAll is a policy that takes everything from the pods of an app, or in one direction.
func denyAll(app, directions string) string {
	return fmt.Sprintf("\n---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny-%s},\n spec: {podSelector: {matchLabels: {app: %s}}, policyTypes: [%s]}}\n", app, app, directions)
}

// streams are flows that were allowed when they began.
var streams = []attack{
	{name: "live flows after a denial", atOnce: true, run: func(s *scene) {
		type live struct {
			client, server *actor
			flow
		}
		var all, beside []live
		open := func(client, server *actor, port uint16) (out []live) {
			for _, tr := range transports {
				out = append(out, live{client, server, s.open(tr.protocol, client, server, port)})
			}
			return out
		}
		for _, s.f = range lab.Families {
			for _, p := range [][2]*actor{{s.free, s.other}, {s.other, s.free}, {s.x, s.other}, {s.other, s.x}} {
				all = append(all, open(p[0], p[1], 7)...)
			}
			beside = append(append(beside, open(s.free, s.x, 7)...), open(s.client, s.x, 53)...)
		}
		s.settle()
		for _, directions := range []string{"Ingress, Egress", "Ingress", "Egress"} {
			s.apply(s.T, policies+denyAll("other", directions))
			for range 2 {
				for _, fl := range all {
					// A flow is forbidden by what forbids its beginning.
					if fl.server == s.other && directions == "Egress" || fl.client == s.other && directions == "Ingress" {
						continue
					}
					what := fmt.Sprintf("%v after %q denied: ", fl.flow, directions)
					s.deny(what+"the answering side", fl.server, fl.fromServer())
					s.deny(what+"the asking side", fl.client, fl.fromClient())
					if directions == "Ingress" {
						continue
					}
					for _, e := range icmpErrors {
						about := fl.fromClient()
						if fl.client == s.other {
							about = fl.fromServer()
						}
						s.deny(what+e.name+" by who may send nothing", s.other, unreachable(s.other.addrs[familyOf(fl.flow)], about, e.v4, e.v6))
					}
				}
				for _, fl := range beside {
					// The answering side speaks first: its packet is judged by who began the flow.
					s.pass(fmt.Sprint(fl.flow, " goes on, the answer"), fl.server, fl.fromServer(), fl.client)
					s.pass(fmt.Sprint(fl.flow, " goes on, the question"), fl.client, fl.fromClient(), fl.server)
				}
				s.settle()
			}
		}
		s.apply(s.T, policies)
		for _, fl := range all {
			s.pass(fmt.Sprint(fl.flow, " allowed again"), fl.client, fl.fromClient(), fl.server)
			s.pass(fmt.Sprint(fl.flow, " allowed again, the answer"), fl.server, fl.fromServer(), fl.client)
		}
	}},
	{name: "what a helper expects", run: func(s *scene) {
		// The node has FTP's helper for flows to port 53, which the client may open.
		s.nft(`table inet ftp {
	ct helper std { type "ftp" protocol tcp; l3proto ` + pick(s.f, "ip", "ip6") + `; }
	chain prerouting { type filter hook prerouting priority -150
		tcp dport 53 ct helper set "std"
	}
}`)
		s.finally(func() { s.nft("delete table inet ftp") })

		control := s.open(frame.TCP, s.client, s.x, 53)
		data := s.port()
		a := s.addr(s.client).As16()
		command := fmt.Sprintf("PORT %d,%d,%d,%d,%d,%d\r\n", a[12], a[13], a[14], a[15], data>>8, data&0xff)
		if s.f == lab.V6 {
			command = fmt.Sprintf("EPRT |2|%v|%d|\r\n", s.addr(s.client), data)
		}
		// The helper reads a line where it has seen another one end.
		seq := uint32(clientSeq + 100)
		for _, line := range []string{string(s.mark()) + "\r\n", command} {
			s.pass("a line", s.client, frame.TCPPacket(control.client, control.server, frame.PSH|frame.ACK, seq, serverSeq+16, []byte(line)), s.x)
			seq += uint32(len(line))
		}
		s.settle()
		if list, err := s.cast.Try("conntrack", "-L", "expect", "-f", pick(s.f, "ipv4", "ipv6")); err != nil || !strings.Contains(list, fmt.Sprintf("dport=%d", data)) {
			s.Errorf("no connection is expected, so the test proves nothing: %v %s", err, list)
		}
		src := netip.AddrPortFrom(s.addr(s.x), 20)
		s.deny("the expected connection to a pod that takes none", s.x, frame.TCPPacket(src, s.to(s.client, data), frame.SYN, 1, 0, s.mark()))
	}},
}

func familyOf(fl flow) lab.Family {
	if fl.client.Addr().Is4() {
		return lab.V4
	}
	return lab.V6
}
