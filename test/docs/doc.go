// Package docs runs the shell blocks of the pages, as a person who reads them does, against real servers.
//
// Each ```sh block of a page belongs to a scene of this package, or says in a comment just before it why it is not run, or which other test runs
// it:
//
//	<!-- not run: it needs Docker -->
//	<!-- run by: TestPackage in test/ship -->
//
// A block that is neither fails the test.
package docs
