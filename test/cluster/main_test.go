package cluster_test

import (
	"os"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m, "podmark", "podmarkd")) }
