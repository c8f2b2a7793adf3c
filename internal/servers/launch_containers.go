//go:build containers

package servers

import (
	"cmp"
	"context"
	"os"
	"strconv"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers/containers"
)

// The scripts do in an image what initdb and StorageTool do here, so that a server has the same settings wherever it
// runs. They need no more of an image than that it holds the server: any image of postgres and of apache/kafka does, and
// so does a Debian with postgresql or with a JRE and Kafka's jars.
const (
	postgresScript = `
		set -e
		PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
		if [ ! -e /tmp/data/PG_VERSION ]; then
			printf %s "$PASSWORD" >/tmp/password
			initdb -D /tmp/data -U postgres --auth=password --pwfile=/tmp/password --encoding=UTF8 --no-locale --no-sync
			printf 'host all all all password\nhost replication all all password\n' >>/tmp/data/pg_hba.conf
			printf %s "$SETTINGS" >>/tmp/data/postgresql.conf
		fi
		exec postgres -D /tmp/data -p "$PORT"`

	kafkaScript = `
		set -e
		if [ ! -e /tmp/data ]; then
			printf %s "$PROPERTIES" >/tmp/server.properties
			java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --standalone -t "$CLUSTER" -c /tmp/server.properties
		fi
		exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*' kafka.Kafka /tmp/server.properties`
)

// bindHost is the address that a broker listens on: what the engine forwards arrives at the container's own.
const bindHost = "0.0.0.0"

func launchPostgres(ctx context.Context, o PostgresOptions, port int, password string) (_ instance, binDir string, err error) {
	settings := o.settings()
	settings["listen_addresses"] = "*"
	settings["unix_socket_directories"] = "/tmp"
	c, err := containers.New(ctx, containers.Spec{
		Image:  cmp.Or(os.Getenv("OUTBOX_TEST_POSTGRES_IMAGE"), "postgres:"+cmp.Or(o.Version, "18")),
		User:   "postgres",
		Script: postgresScript,
		Env:    map[string]string{"PASSWORD": password, "SETTINGS": formatSettings(settings), "PORT": strconv.Itoa(port)},
		Ports:  []int{port},
	})
	if err != nil {
		return nil, "", err
	}
	return c, "", nil
}

func launchKafka(ctx context.Context, _ KafkaOptions, ports []int, properties map[string]string) (instance, error) {
	properties["log.dirs"] = "/tmp/data"
	c, err := containers.New(ctx, containers.Spec{
		Image:  cmp.Or(os.Getenv("OUTBOX_TEST_KAFKA_IMAGE"), "apache/kafka:"+kafkaVersion),
		Script: kafkaScript,
		Env:    map[string]string{"PROPERTIES": formatProperties(properties), "CLUSTER": kafkaClusterID},
		Ports:  ports,
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}
