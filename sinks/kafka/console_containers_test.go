//go:build containers

package kafka

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// consolePartitions needs the broker's jars, which are in its container here: the other build has the test.
func consolePartitions(t *testing.T, _ *servers.Kafka) {
	t.Log("not compared with the console producer, which the build without tag containers is")
}

// remedyOfCheck needs the jars as well.
func remedyOfCheck(t *testing.T, _ *servers.Kafka) {
	t.Log("the command is not run, which the build without tag containers does")
}
