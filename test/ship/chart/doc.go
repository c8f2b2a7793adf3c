// Package chart tests the Helm chart, deploy/helm/outbox-cdc, without a cluster. It is a module of its own, so that neither Helm nor the
// types of Kubernetes are among the modules of the connector. The test of package ship runs it: make test-ship.
package chart
