// Package chaos has many pods of a node come and go at once, while whoever does it is killed
// at any moment, and asks all the time whether anything passes that a policy forbids. At the
// end, when all pods are gone, nothing of them may be left.
//
// The seed is printed. PODMARK_SEED repeats the choices, though not the moments;
// PODMARK_CHAOS is how long each node has it, 1m in make test.
package chaos
