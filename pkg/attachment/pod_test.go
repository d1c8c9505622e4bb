package attachment_test

import (
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
)

func TestPodOf(t *testing.T) {
	for args, want := range map[string]attachment.Pod{
		"":                          {},
		"IgnoreUnknown=1":           {},
		"K8S_POD_NAME":              {},
		"K8S_POD_NAME=a;;=;K8S_POD": {Name: "a"},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u=v": {Namespace: "shop", Name: "web-0", UID: "u=v"},
	} {
		if got := attachment.PodOf(attachment.ParseArgs(args)); got != want {
			t.Errorf("%q: %+v, want %+v", args, got, want)
		}
	}
}
