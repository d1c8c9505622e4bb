//go:build !podmark_fault

package main

// stepHook is nil in a plugin that is shipped; see step_fault.go.
func stepHook() func(string) { return nil }
