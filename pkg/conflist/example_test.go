package conflist_test

import (
	"fmt"

	"github.com/podmark/podmark/pkg/conflist"
)

func Example() {
	files := []conflist.File{
		{Name: "87-podman.conflist", Content: []byte(`{"name": "podman", "plugins": [{"type": "bridge"}]}`)},
		{Name: "10-net.conflist", Content: []byte(`{"name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap"}]}`)},
	}
	chosen, _, err := conflist.Choose(files, conflist.Wanted{})
	if err != nil {
		fmt.Println(err)
		return
	}
	content, err := conflist.Insert(chosen.Content, []byte(`{"type": "podmark"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s: %s\n", chosen.Name, content)
	// Output:
	// 10-net.conflist: {"name": "net", "plugins": [{"type": "ptp"}, {"type": "portmap"}, {"type": "podmark"}]}
}
