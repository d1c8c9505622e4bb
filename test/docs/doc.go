// Package docs holds README.md, CHANGELOG.md, docs and conf to what the code does:
// keys, codes, commands, names, rules and examples.
//
//	go test ./test/docs            fails where a document and the code differ
//	go test ./test/docs -update    writes the rendered rules into docs/rules.md
package docs
