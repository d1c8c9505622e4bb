package main

import (
	"testing"

	"github.com/podmark/podmark/test/man"
)

func TestManual(t *testing.T) { man.Check(t, newRoot()) }
