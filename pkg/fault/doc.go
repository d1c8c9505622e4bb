// Package fault harms podmark's programs where the tests of crashes ask for it. Programs that are
// shipped have the half of it that does nothing: the other has the build tag podmark_fault.
package fault
