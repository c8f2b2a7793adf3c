// Package ship tests what is installed: the image, packages, units, the Helm chart, the compose file and the release. What takes
// seconds is in every run of the tests. What builds tools or starts servers needs the flag -ship: make test-ship.
package ship
