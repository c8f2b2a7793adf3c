// Package compose reads deploy/compose/compose.yaml as Docker Compose does, by the loader of its specification. It is a module of its
// own, so that the loader is not among the modules of the connector. The test of package ship runs it: make test-ship.
package compose
