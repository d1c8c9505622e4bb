//go:build !podmark_format_late && !podmark_format_next

package node

// format is that of the state directory that this podmark writes, and reads the oldest whose
// podmark may go on from there. A field that older ones may forget raises format; one that they
// would get wrong, or a change of meaning, raises reads too.
//
//	0  node.json says nothing of the other files
//	1  node.json names what policies.json has, and says when an uninstall has begun
const format, reads = 1, 0
