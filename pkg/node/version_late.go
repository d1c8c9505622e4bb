//go:build podmark_format_late

package node

// A podmark to come, for tests, with a format that the one of now may go on from.
const format, reads = 2, 1
