package servers

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kafkaVersion is the broker that we start.
const kafkaVersion = "4.3.1"

//go:embed kafka-pom.xml
var kafkaPOM string

var errNoJava = errors.New("java 17 or newer runs Apache Kafka, and Maven downloads it; install them " +
	"(Debian: apt-get install default-jre-headless maven); or set OUTBOX_TEST_KAFKA=host:port to use a running broker")

// kafkaJars returns the directory of the broker's jars, and downloads them with Maven if they are not cached.
func kafkaJars(ctx context.Context) (string, error) {
	dir, err := cached("kafka-"+kafkaVersion, func(dir string) error {
		if _, err := exec.LookPath("mvn"); err != nil {
			return errNoJava
		}
		pom := filepath.Join(dir, "pom.xml")
		if err := os.WriteFile(pom, []byte(strings.ReplaceAll(kafkaPOM, "@VERSION@", kafkaVersion)), 0o644); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies",
			"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(dir, "libs")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("download Apache Kafka %s with Maven: %w\n%s", kafkaVersion, err, out)
		}
		return nil
	})
	return filepath.Join(dir, "libs"), err
}
