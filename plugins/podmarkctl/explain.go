//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
	"github.com/podmark/podmark/pkg/podapi"
)

func newExplain(o *options) *cobra.Command {
	var from manifests
	cmd := &cobra.Command{
		Use:   "explain SRC DST[:PORT][/PROTO]",
		Short: "Show where a packet is judged, by which policy and rule, and the verdict",
		Long: `Explain follows the first packet of a new connection across this node: the hooks
that it passes, who judges it there, the policies and the rule that decide, and the
verdict. It resolves the address of a service, or a NodePort, by the kernel's IPVS
table, and follows the packet to each backend. What it could not know, it says.

SRC and DST are a pod of this node as [NAMESPACE/]NAME, one of another node as
NAMESPACE/NAME where podmarkd asks the API server, an address, "host" for the node
itself, or "outside" for what is neither a pod nor a node. PROTO is tcp, udp, sctp or
icmp, and tcp unless it is named. Without a PORT, it is any that no rule names. An IPv6
address is in brackets when a port follows.

The rules are those that the node should enforce; whether the kernel has them is for
'podmarkctl doctor'. With --policy, they are those that 'podmarkctl apply' would make
of these manifests, in place of the present ones.

Exit status: 0 allowed, 1 denied to one backend at least, 2 wrong usage or failure.`,
		Example: `  podmarkctl explain shop/client shop/web:8080
  podmarkctl explain client 10.96.0.80:80/tcp
  podmarkctl explain outside host:30080
  podmarkctl explain 192.0.2.7 [fd00:22::2]:53/udp
  podmarkctl explain client web:9090 --policy policies/ -o json`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: o.completeSides,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := explain.Parse(args[0], args[1])
			if err != nil {
				return err
			}
			policies, err := from.read(cmd)
			if err != nil {
				return err
			}
			a, err := o.explain(cmd.Context(), q, policies)
			if err != nil {
				return err
			}
			err = o.print(cmd.OutOrStdout(), a, func(w io.Writer) error {
				_, err := io.WriteString(w, a.Text())
				return err
			})
			if err == nil && !a.Allowed {
				err = errFound
			}
			return err
		},
	}
	from.addFlags(cmd, "policy", "", "ask about a policy instead of the node's: a manifest, a directory, or - for stdin; may be repeated")
	return cmd
}

// locate asks podmarkd for those of the question's pods that another node may have. Who
// does not know says nothing: then the pod is not found, which says what to do.
func (o *options) locate(q explain.Query) map[string][]netip.Addr {
	found := map[string][]netip.Addr{}
	ctx, cancel := context.WithTimeout(context.Background(), locateDeadline)
	defer cancel()
	for _, side := range []explain.Side{q.Src, q.Dst} {
		namespace, pod, ok := strings.Cut(side.Name, "/")
		if !ok {
			continue
		}
		a, err := podapi.Get(ctx, filepath.Join(o.stateDir, config.SocketName),
			podapi.Request{Namespace: namespace, Pod: pod, Locate: true})
		if err == nil && len(a.Addresses) > 0 {
			found[side.Name] = a.Addresses
		}
	}
	return found
}

// locateDeadline bounds what podmarkd takes to ask the API server.
const locateDeadline = 5 * time.Second

// explain answers with the node's policies, or with those.
func (o *options) explain(ctx context.Context, q explain.Query, policies *desired.Policies) (explain.Answer, error) {
	settings := defaults()
	f := explain.Facts{Proposed: policies != nil}
	var err error
	if f.State, err = o.node().Preview(settings, policies); err != nil {
		return explain.Answer{}, err
	}
	if _, f.Unsettled, err = o.node().EnforcedPolicies(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return explain.Answer{}, err
	}
	kind, err := o.node().Kind()
	if err != nil {
		return explain.Answer{}, err
	}
	f.Backend = kind.Backend()
	f.Chains = dataplane.ChainsOf(f.Backend)
	f.Elsewhere = o.locate(q)
	if f.Watched, err = o.node().Store.DaemonLives(); err != nil {
		return explain.Answer{}, err
	}
	return agent.Explain(ctx, o.node(), q, f)
}
