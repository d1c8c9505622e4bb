//go:build podmark_format_next

package node

// A podmark to come, for tests, with a format that the one of now must not go on from.
const format, reads = 2, 2
