// Package metrics holds the dashboard, the alert rules and the documents to what
// podmarkd exports: it runs one, asks it, and has Prometheus' own parser and engine
// read every expression. It is a module of its own, so that those never reach podmark.
package metrics
