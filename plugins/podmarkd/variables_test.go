package main

import (
	"strings"
	"testing"
)

// What the kubelet sets for a Service that is called podmarkd is no flag, and flags of one
// command may be there while another runs.
func TestUnknownVariables(t *testing.T) {
	root := newRoot()
	for _, e := range []string{
		"PODMARKD_INTERVAL=1s", "PODMARKD_STATE_DIR=/x", "PODMARKD_WAIT=1m", "PODMARKD_ENTRY=/x", "PODMARK_INTERVALL=1s", "HOME=/", "",
		"PODMARKD_SERVICE_HOST=10.0.0.1", "PODMARKD_SERVICE_PORT=9469", "PODMARKD_SERVICE_PORT_METRICS=9469", "PODMARKD_PORT=tcp://10.0.0.1:9469",
		"PODMARKD_PORT_9469_TCP=tcp://10.0.0.1:9469", "PODMARKD_PORT_9469_TCP_PROTO=tcp", "PODMARKD_PORT_9469_TCP_PORT=9469",
		"PODMARKD_PORT_9469_TCP_ADDR=10.0.0.1", "PODMARKD_METRICS_SERVICE_HOST=10.0.0.1",
	} {
		if err := unknownVariables(root, []string{e}); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
	for _, e := range []string{"PODMARKD_INTERVALL=1s", "PODMARKD_PORT=80", "PODMARKD_NODE_PORT=tcp", "PODMARKD_=", "PODMARKD_INTERVAL_=1"} {
		name, _, _ := strings.Cut(e, "=")
		if err := unknownVariables(root, []string{"A=b", e}); err == nil || !strings.Contains(err.Error(), "has "+name+",") {
			t.Errorf("%s: %v", e, err)
		}
	}
}
