// An echo server on tableflip, as close to its TCP example (tcp_example_test.go, doc.go) as an echo
// server can be: HUP upgrades, the library writes the pid file, and a process that was replaced
// waits for its sessions, for as long as ours does.
package main

import (
	"flag"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
)

// As the demo's --drain-timeout has it by default.
const drainTimeout = 30 * time.Second

func main() {
	listen := flag.String("listen", "localhost:8080", "`address` to listen on")
	pidFile := flag.String("pid-file", "", "`path` to pid file")
	flag.Parse()

	upg, err := tableflip.New(tableflip.Options{PIDFile: *pidFile})
	if err != nil {
		log.Fatalln("tableflip:", err)
	}
	defer upg.Stop()

	go func() {
		sig := make(chan os.Signal, 1)
		signal.Notify(sig, syscall.SIGHUP)
		for range sig {
			if err := upg.Upgrade(); err != nil {
				log.Println("upgrade failed:", err)
			}
		}
	}()

	// Listen must be called before Ready.
	ln, err := upg.Listen("tcp", *listen)
	if err != nil {
		log.Fatalln("listen:", err)
	}
	// The loop counts as one, so that what it has just accepted is waited for too.
	var sessions sync.WaitGroup
	sessions.Add(1)
	go accept(ln, &sessions)

	if err := upg.Ready(); err != nil {
		log.Fatalln("ready:", err)
	}
	<-upg.Exit()

	// "No new upgrades can be performed if the parent doesn't exit."
	time.AfterFunc(drainTimeout, func() {
		log.Println("graceful shutdown timed out")
		os.Exit(1)
	})
	ln.Close()
	sessions.Wait()
}

func accept(ln net.Listener, sessions *sync.WaitGroup) {
	defer sessions.Done()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		sessions.Add(1)
		go func() {
			defer sessions.Done()
			defer conn.Close()
			echo(conn)
		}()
	}
}

func echo(conn net.Conn) {
	buffer := make([]byte, 64*1024)
	for {
		count, err := conn.Read(buffer)
		if count > 0 {
			if _, err := conn.Write(buffer[:count]); err != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				log.Println("read:", err)
			}
			return
		}
	}
}
