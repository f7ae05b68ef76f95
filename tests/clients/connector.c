/* Dials 198.51.100.1 and on, port 1024, without waiting for answers, as a
 * program without a runtime would. Usage: connector COUNT WAY,
 * which is plain, thread, fork, exit, leave, family or late
 *
 * Prints the ids of the process and of the thread that dials, and then waits to
 * be killed; with exit, ends at once. With leave it ends too, but a child keeps
 * the sockets. With family, a child dials as well as itself. With
 * late it dials once more when it is told to end, and leaves those to a child.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int count;

static void dial(void)
{
	for (int n = 1; n <= count; n++) {
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(1024) };
		int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

		to.sin_addr.s_addr = htonl((198u << 24) + (51 << 16) + (100 << 8) + n);
		if (s < 0)
			exit(2);
		connect(s, (struct sockaddr *)&to, sizeof(to));
	}
}

static void say(void)
{
	printf("%d %ld\n", getpid(), syscall(SYS_gettid));
	fflush(stdout);
}

static void *in_thread(void *unused)
{
	prctl(PR_SET_NAME, "dialing thread");
	dial();
	say();
	pause();
	return unused;
}

static void leave(int unused)
{
	dial();
	if (fork() == 0)
		pause();
	_exit(0);
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc != 3)
		return 2;
	count = atoi(argv[1]);
	if (!strcmp(argv[2], "thread")) {
		pthread_create(&thread, NULL, in_thread, NULL);
		pthread_join(thread, NULL);
	} else if (!strcmp(argv[2], "fork")) {
		if (fork() > 0) {
			pause();
			return 0;
		}
		prctl(PR_SET_PDEATHSIG, 9);
		dial();
		say();
		pause();
	} else if (!strcmp(argv[2], "leave")) {
		dial();
		if (fork() == 0)
			pause();
		say();
	} else if (!strcmp(argv[2], "late")) {
		signal(SIGTERM, leave);
		dial();
		say();
		pause();
	} else if (!strcmp(argv[2], "family")) {
		dial();
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, 9);
			dial();
			say();
		}
		pause();
	} else if (!strcmp(argv[2], "exit")) {
		say();
		dial();
	} else {
		dial();
		say();
		pause();
	}
	return 0;
}
