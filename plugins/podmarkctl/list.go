//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// listed is one endpoint as 'list -o json' shows it, or a pod that started without podmark,
// which has neither ID nor mark.
type listed struct {
	ID        mark.ID      `json:"id,omitempty"`
	Mark      string       `json:"mark,omitempty"`
	Namespace string       `json:"namespace"`
	Pod       string       `json:"pod"`
	Interface string       `json:"interface"`
	HostVeth  string       `json:"hostVeth"`
	Addresses []netip.Addr `json:"addresses"`
	// Sources are prefixes that it may send from besides.
	Sources []netip.Prefix    `json:"sources,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Ingress *listedProfile    `json:"ingress"`
	Egress  *listedProfile    `json:"egress"`
	// Unpoliced is set where no policy holds for the endpoint, and Because says why.
	Unpoliced   bool        `json:"unpoliced,omitempty"`
	Because     desired.Gap `json:"unpolicedBecause,omitempty"`
	Network     string      `json:"network"`
	ContainerID string      `json:"containerID"`
	IfName      string      `json:"ifName"`
}

// listedProfile is null for a direction in which the endpoint is not isolated.
type listedProfile struct {
	ID       desired.ProfileID `json:"id"`
	Policies []string          `json:"policies"`
	// Audit is set where they isolate nothing: they are tried out.
	Audit bool `json:"audit,omitempty"`
}

func newList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the endpoints: ID, mark, pod, interface, addresses, policies",
		Long: `List shows the endpoints of the node, how many pods are policed and why others are
not. While podmarkd runs, pods that started without podmark are listed too, without
an ID: it alone sees them.`,
		Example: `  podmarkctl list
  podmarkctl list -o json | jq '.[] | select(.pod == "web-0")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, err := o.node().State()
			if errors.Is(err, fs.ErrNotExist) {
				state, err = desired.State{}, nil
			}
			if err != nil {
				return err
			}
			list := make([]listed, 0, len(state.Endpoints))
			records := make([]attachment.Record, 0, len(state.Endpoints))
			for _, e := range state.Endpoints {
				gap := desired.GapOf(e.Record, state.Applied)
				records = append(records, e.Record)
				list = append(list, listed{
					ID: e.ID, Mark: state.Layout.ID(e.ID).String(),
					Namespace: e.Namespace, Pod: e.Pod,
					Interface: e.L3Interface, HostVeth: e.HostVeth, Addresses: e.Addresses, Sources: e.AllowedSources,
					Labels:    e.Labels,
					Ingress:   profileOf(state, e.Profiles[desired.Ingress]),
					Egress:    profileOf(state, e.Profiles[desired.Egress]),
					Unpoliced: gap != "", Because: gap,
					Network: e.Network, ContainerID: e.ContainerID, IfName: e.IfName,
				})
			}
			unmarked, unseen := o.unmarked()
			for _, container := range slices.Sorted(maps.Keys(unmarked)) {
				namespace, pod, _ := strings.Cut(unmarked[container], "/")
				list = append(list, listed{
					Namespace: namespace, Pod: pod, Addresses: []netip.Addr{},
					Unpoliced: true, Because: desired.Unmarked, ContainerID: container,
				})
			}
			return o.print(cmd.OutOrStdout(), list, func(w io.Writer) error {
				if err := listTable(w, list); err != nil || len(list) == 0 {
					return err
				}
				covers := desired.CoverageOf(records, unmarked, state.Applied)
				covers.Unseen = unseen
				_, err := fmt.Fprintln(w, covers)
				return err
			})
		},
	}
}

func profileOf(s desired.State, id desired.ProfileID) *listedProfile {
	if id == "" {
		return nil
	}
	return &listedProfile{ID: id, Policies: s.Profiles[id].Policies(), Audit: s.Profiles[id].Audit()}
}

// unpoliced is what the table says where no policy holds.
const unpoliced = "unpoliced"

func listTable(w io.Writer, list []listed) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tMARK\tPOD\tINTERFACE\tADDRESSES\tSOURCES\tINGRESS\tEGRESS")
	for _, l := range list {
		if l.Because == desired.Unmarked {
			fmt.Fprintf(tw, "-\t-\t%s\t-\t-\t-\t%s\t%[2]s\n", l.name(), unpoliced)
			continue
		}
		addresses := make([]string, len(l.Addresses))
		for i, a := range l.Addresses {
			addresses[i] = a.String()
		}
		ingress, egress := l.Ingress.String(), l.Egress.String()
		if l.Unpoliced {
			ingress, egress = unpoliced, unpoliced
		}
		sources := "-"
		if len(l.Sources) > 0 {
			sources = strings.Trim(strings.ReplaceAll(fmt.Sprint(l.Sources), " ", ","), "[]")
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Mark, l.name(), l.where(), strings.Join(addresses, ","), sources, ingress, egress)
	}
	return tw.Flush()
}

// name is the pod's, or the container's where there is no pod.
func (l listed) name() string {
	if l.Pod == "" {
		return l.ContainerID
	}
	return l.Namespace + "/" + l.Pod
}

func (l listed) where() string {
	if l.HostVeth == l.Interface {
		return l.HostVeth
	}
	return l.HostVeth + "@" + l.Interface
}

func (p *listedProfile) String() string {
	if p == nil {
		return "-"
	}
	names := strings.Join(p.Policies, ",")
	if p.Audit {
		names += " (audit)"
	}
	return names
}
