package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// instance is what a server runs in: a local process, or a container. It can be started again after it has ended.
// Its methods are called by one goroutine at a time.
type instance interface {
	Start(ctx context.Context) error
	Signal(sig syscall.Signal) error
	// Done is closed when what Start started has ended.
	Done() <-chan struct{}
	// Pid is 0 where there is no local process.
	Pid() int
	// Log is the end of what the server printed.
	Log() string
	// Remove ends it at once, and removes what it kept.
	Remove() error
}

// process is an instance that is a child of ours.
//
// On Linux the kernel ends it when we end, however we end (Pdeathsig). That signal is sent when the *thread* that
// forked the child exits, which the Go runtime may make happen at any time: a goroutine that ends while locked to its
// thread takes the thread along. So one goroutine, locked to its thread, forks the child and stays in Wait until the
// child has ended. Elsewhere a child outlives us if we are killed with SIGKILL.
type process struct {
	path    string
	args    []string
	logFile string
	signal  syscall.Signal // what ends it when we have ended
	user    *syscall.Credential
	dir     *directory

	cmd  *exec.Cmd
	done chan struct{}
	err  error // how the child has ended, once done is closed
}

func (p *process) Start(context.Context) error {
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()

	// The child lives longer than the context of whoever starts it, hence no CommandContext.
	cmd := exec.Command(p.path, p.args...) //nolint:noctx // see above
	cmd.Dir = p.dir.path
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes(p.user, p.signal)

	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.cmd, p.done = cmd, done
	return nil
}

// Signal sends a signal. After SIGSTOP, the process stands still.
func (p *process) Signal(sig syscall.Signal) error {
	if p.cmd == nil {
		return os.ErrProcessDone
	}
	if sig == syscall.SIGSTOP {
		return Freeze(p.Pid())
	}
	return p.cmd.Process.Signal(sig)
}

func (p *process) Done() <-chan struct{} { return p.done }

func (p *process) Pid() int { return p.cmd.Process.Pid }

// Log gives the last lines only: a server that does not start says why at the end.
func (p *process) Log() string {
	data, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

func (p *process) Remove() error {
	if p.cmd != nil {
		// A stopped process (SIGSTOP) would not react to anything but SIGKILL.
		err := errors.Join(p.Signal(p.signal), p.Signal(syscall.SIGCONT))
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-p.done
	}
	return p.dir.remove()
}

// serverUser is whom PostgreSQL runs as: it refuses to be root.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return nil, fmt.Errorf("find a user to run PostgreSQL as, which refuses root: %w", err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user id of nobody: %w", err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("group id of nobody: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
