//! What `--help` prints.

pub(crate) const HELP: &str = "\
hups: keeps a server under load while it is replaced, and tells what clients noticed

usage: hups --addr ADDRESS (--pid-file FILE | --pid PID) [options]
       hups --addr ADDRESS (--upgrade-command CMD | --upgrade-admin ADDRESS) [options]
       hups [options] --addr ADDRESS ... --then --addr ADDRESS ... [--then ...]
       hups --compare A.json B.json [C.json ...]

Exit status: 0 nothing was dropped; 1 something was dropped, an upgrade command failed or the run
could not be finished; 2 wrong usage or no server.

server
  --addr HOST:PORT|unix:PATH  where the load goes; loopback only, without --allow-remote
  --pid-file FILE             names the process to signal; read anew before every signal
  --pid PID                   the process to signal, if it stays the same
  --allow-remote              let --addr be on another machine
  --name NAME                 what the report calls the server [the address]
  --then                      ends the flags of one server; those of the next one follow. Each has
                              a run of its own, one after the other. The load, the protocol and the
                              times stay as they were said before. --addr, --name, --pid-file,
                              --pid, --signal, --upgrade-command and --upgrade-admin do not: they
                              are said anew for each server. The reports are one JSON array, or
                              tables and a comparison
protocol
  --protocol NAME             echo, http, redis or line [echo]
      echo                    the server sends back what it gets; every byte is compared
      http                    HTTP/1.1: short connections ask with Connection: close, long ones
                              keep alive. A server that says close and closes after a whole answer,
                              or closes a long connection on which it owes nothing, has closed in
                              order: that is counted, and is no drop. A request that was sent and
                              is not answered is one
      redis                   RESP: a command, and its whole reply. On loopback the connections
                              come from 127.0.0.2 and on: Redis takes those only with
                              protected-mode no
      line                    a line is answered with a line
  --send TEXT                 http: the path [/]; redis: the command, in words [PING]; line: the
                              line [hups]
  --expect TEXT               http: the status [200], or with 200 a text that is in the body;
                              redis: the first line of the reply [+PONG, or with --send whatever is
                              no error]; line: the line [the one sent]
  --tls                       every connection speaks TLS 1.2 or 1.3, and takes whatever certificate
                              comes. Each has a whole handshake, and its time counts. An end that TLS
                              did not announce (close_notify) drops an answer that it cuts off. Only in
                              the build of examples/tls: cargo run --release --features hups --bin hups
  --tls-name NAME             the name that the server is asked for (SNI) [localhost]
load
  --short-rate N              connections a second for one request each [100] (0 to 20000)
  --long-conns N              connections that are kept [10] (0 to 15000)
  --long-rate N               requests a second, over all of those in turn [100] (0 to 50000);
                              on a connection still busy they wait, and their latency counts
  --bytes N                   echo: length of a message [32] (1 to 16777216)
  --timeout-ms N              after which a request counts as dropped [5000] (1 to 60000)
upgrades
  --hups N                    how many [10] (0 to 100000); 0: load alone, for --calm-seconds
  --interval-ms N|MIN-MAX     between them, or drawn between two bounds [1000] (1 to 600000)
  --signal NAME               HUP, USR1, USR2, QUIT, TERM or WINCH [HUP]
  --upgrade-command CMD       runs CMD with sh -c, in place of a signal. A status that is not 0 is a
                              failed upgrade. The next one waits until the command has ended. What
                              it prints on standard output is left out
  --upgrade-admin ADDRESS     sends POST /upgrade to the admin endpoint of a server of this library
                              (/PATH, unix:@NAME or HOST:PORT), in place of a signal, and waits for
                              what became of it. An endpoint takes commands on a Unix socket only.
                              With the last two, --pid-file and --pid may be left out; then nothing
                              is known of the processes, and their figures are null
  --seed N                    for intervals and messages [the clock]
time
  --calm-seconds N            load before the first upgrade [2] (0 to 3600, 0.5 is possible)
  --settle-ms N               how long the server must be quiet at the end [1500] (0 to 60000)
  --window-ms N               before and after each upgrade, at most half the interval [50]
  --max-seconds N             the run is cut off then, but for --timeout-ms [300] (1 to 3600)
output
  --json                      one JSON object instead of the table
  --svg FILE                  draws latency and drops over time, with each upgrade, and latency by
                              percentile. With --then, the second server's goes to FILE with -2
                              before its ending, and so on
  --progress                  progress lines, also where stderr is not a terminal
  --compare FILE FILE ...     no run: reports that --json has printed, side by side. The figure in
                              brackets is the ratio to the first report
  --help

How late it is itself: a request is due by the clock, and latency counts from then. If this program
is busy or has no processor, it sends later than that, and the server is blamed. So it measures, for
every request, the time from when it was due until it was sent (generator late). What a request
waits for on a busy long connection does not count: that is the server's. If the 99th percentile of
this is more than LATE_MS ms, or more than a tenth of the 99th percentile of the latency, the run is
marked (generator_was_late): its latencies say too much. Use a lower load, or give it a processor of
its own.
";
