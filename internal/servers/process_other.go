//go:build !linux

package servers

import "syscall"

// childAttributes leaves the child in our process group: without Pdeathsig it is the terminal's Ctrl-C that ends both.
func childAttributes(user *syscall.Credential, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: user}
}
