//go:build !containers

package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// launchPostgres makes a cluster and what runs it, not yet started.
func launchPostgres(ctx context.Context, o PostgresOptions, port int, password string) (_ instance, binDir string, err error) {
	binaries, err := findInstallation(ctx, o)
	if err != nil {
		return nil, "", err
	}
	o.tell(fmt.Sprintf("PostgreSQL %s of %s (%s)", binaries.Version, binaries.Dir, binaries.Reason))
	owner, err := serverUser()
	if err != nil {
		return nil, "", err
	}
	dir, err := newDirectory(o.Dir, "pg", owner)
	if err != nil {
		return nil, "", err
	}
	p := &process{
		path:    filepath.Join(binaries.Dir, "postgres"),
		args:    []string{"-D", filepath.Join(dir.path, "data"), "-p", strconv.Itoa(port)},
		logFile: filepath.Join(dir.path, "postgres.log"),
		signal:  syscall.SIGQUIT, // immediate shutdown
		user:    owner,
		dir:     dir,
	}
	if err := p.initdb(ctx, binaries, o.settings(), password); err != nil {
		return nil, "", fmt.Errorf("initdb of %s: %w", binaries.Dir, joinRemove(err, p))
	}
	return p, binaries.Dir, nil
}

func (p *process) initdb(ctx context.Context, binaries installation, settings map[string]string, password string) error {
	data := filepath.Join(p.dir.path, "data")
	passwordFile := filepath.Join(p.dir.path, "password")
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return err
	}
	if p.user != nil {
		if err := os.Chown(passwordFile, int(p.user.Uid), int(p.user.Gid)); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(binaries.Dir, "initdb"), "-D", data, "-U", superuser,
		"--auth=password", "--pwfile="+passwordFile, "--encoding=UTF8", "--no-locale", "--no-sync")
	cmd.Dir = p.dir.path
	cmd.SysProcAttr = childAttributes(p.user, syscall.SIGKILL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	settings["listen_addresses"] = "127.0.0.1"
	settings["unix_socket_directories"] = p.dir.path
	// The file rather than the command line, which would overrule ALTER SYSTEM.
	conf, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(formatSettings(settings))
	return errors.Join(err, conf.Close())
}

// bindHost is the address that a broker listens on.
const bindHost = "127.0.0.1"

// launchKafka formats a broker's storage, and makes what runs it, not yet started.
func launchKafka(ctx context.Context, o KafkaOptions, _ []int, properties map[string]string) (_ instance, err error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, errNoJava
	}
	jars, err := kafkaJars(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(o.Dir, "kafka", nil)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir.path, "server.properties")
	class := []string{"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(jars, "*")}
	p := &process{
		path:    java,
		args:    append(slices.Clone(class), "kafka.Kafka", file),
		logFile: filepath.Join(dir.path, "kafka.log"),
		signal:  syscall.SIGKILL,
		dir:     dir,
	}
	properties["log.dirs"] = filepath.Join(dir.path, "data")
	if err := os.WriteFile(file, []byte(formatProperties(properties)), 0o644); err != nil {
		return nil, joinRemove(err, p)
	}
	role := "--standalone"
	if o.Join != nil {
		role = "--no-initial-controllers"
	}
	format := exec.CommandContext(ctx, java, append(class, "kafka.tools.StorageTool", "format",
		role, "-t", kafkaClusterID, "-c", file)...)
	if out, err := format.CombinedOutput(); err != nil {
		return nil, joinRemove(fmt.Errorf("format the storage of Apache Kafka: %w\n%s", err, out), p)
	}
	return p, nil
}
