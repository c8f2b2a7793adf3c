package servers

import "syscall"

// childAttributes gives the child a process group of its own, so that a Ctrl-C reaches us and not it: who started the
// server decides when it stops.
func childAttributes(user *syscall.Credential, death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: user, Pdeathsig: death, Setpgid: true}
}
