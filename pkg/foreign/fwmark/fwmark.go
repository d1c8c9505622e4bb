// Package fwmark reads the services of IPVS that are known by a firewall mark. It stands
// apart from package foreign because of the library that it needs, which the CNI plugin
// does without.
package fwmark

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/moby/ipvs"

	"github.com/podmark/podmark/pkg/foreign"
)

// Services lists them over netlink: /proc/net/ip_vs has left some out where IPVS is
// used in several network namespaces at once (seen with Linux 6.1).
func Services() (out []foreign.Lookup, err error) {
	_, err = WithIPVS(func(h *ipvs.Handle) error {
		services, err := h.GetServices()
		if err != nil {
			return fmt.Errorf("reading the services of IPVS: %w", err)
		}
		for _, svc := range services {
			if n := svc.FWMark; n != 0 {
				out = append(out, foreign.Lookup{
					Kind: foreign.IPVSService, Mark: n, Mask: foreign.All,
					Text: fmt.Sprintf("the IPVS service of firewall mark %d ('ipvsadm -L -f %d')", n, n),
				})
			}
		}
		return nil
	})
	return out, err
}

// ipvsTable is there while the kernel has IPVS loaded.
const ipvsTable = "/proc/net/ip_vs"

// WithIPVS hands IPVS to f, and tells whether the kernel has it loaded. The library
// loads the module when it is asked, which is for kube-proxy to decide: so it is asked
// only where IPVS is loaded.
func WithIPVS(f func(*ipvs.Handle) error) (loaded bool, err error) {
	if _, err := os.Stat(ipvsTable); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	h, err := ipvs.New("")
	if err != nil {
		return true, fmt.Errorf("connecting to IPVS: %w", err)
	}
	defer h.Close()
	return true, f(h)
}
