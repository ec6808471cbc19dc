# Plays scenarios on a real BEAM and prints what happened: one line an event, `scenario TAB step TAB event`.
#
# The scenarios come as Elixir terms in the file named by the first argument: a list of maps, see scenarios.py, whose
# Python interpreter (play.py) does the same steps with our engine. All scenarios run at once, each in a driver process
# of its own with an event log of its own.

:logger.set_primary_config(:level, :none)

defmodule Log do
  def new, do: :ets.new(:log, [:public, :ordered_set])
  def add(ctx, text), do: :ets.insert(ctx.log, {{:event, System.unique_integer([:monotonic])}, text})
  def name(ctx, id, pid), do: :ets.insert(ctx.log, [{{:pid, id}, pid}, {{:id, pid}, id}])
  def pid(ctx, id), do: :ets.lookup_element(ctx.log, {:pid, id}, 2)
  def count(ctx, id), do: :ets.update_counter(ctx.log, {:starts, id}, 1, {{:starts, id}, -1})
  def take(ctx) do
    found = :ets.select(ctx.log, [{{{:event, :"$1"}, :"$2"}, [], [{{:"$1", :"$2"}}]}])
    Enum.each(found, fn {key, _} -> :ets.delete(ctx.log, {:event, key}) end)
    Enum.map(found, &elem(&1, 1))
  end
  def size(ctx), do: :ets.info(ctx.log, :size)
  def pids(ctx), do: :ets.select(ctx.log, [{{{:pid, :_}, :"$1"}, [], [:"$1"]}])
  def id(ctx, pid) do
    case :ets.lookup(ctx.log, {:id, pid}) do
      [{_, id}] -> id
      [] -> if pid == ctx.driver, do: "driver", else: "?"
    end
  end
end

defmodule Reason do
  def read("shutdown:" <> detail), do: {:shutdown, detail}
  def read(name), do: String.to_atom(name)

  def out({:shutdown, {:failed_to_start_child, id, reason}}), do: "shutdown:failed_to_start_child #{id} #{out(reason)}"
  def out({:failed_to_start_child, id, reason}), do: "failed_to_start_child #{id} #{out(reason)}"
  def out({:shutdown, detail}) when is_binary(detail), do: "shutdown:#{detail}"
  def out({:bad_return_value, _}), do: "bad_return_value"
  def out({:already_started, _}), do: "already_started"
  def out({reason, {GenServer, _, _}}), do: "call:#{out(reason)}"
  def out({%{__exception__: true}, stack}) when is_list(stack), do: "crash"
  def out({reason, stack}) when is_atom(reason) and is_list(stack), do: out(reason)
  def out(reason) when is_atom(reason), do: Atom.to_string(reason)
  def out(other), do: inspect(other)
end

defmodule W do
  use GenServer

  def spec(o, ctx) do
    base = %{id: o.id, start: {W, :start_link, [o, ctx]}, restart: String.to_atom(Map.get(o, :restart, "permanent"))}
    base = if Map.has_key?(o, :shutdown), do: Map.put(base, :shutdown, shutdown(o.shutdown)), else: base
    if Map.get(o, :significant), do: Map.put(base, :significant, true), else: base
  end

  defp shutdown("brutal_kill"), do: :brutal_kill
  defp shutdown("infinity"), do: :infinity
  defp shutdown(ms), do: ms

  def start_link(o, ctx), do: GenServer.start_link(W, {o, ctx})
  def start(o, ctx), do: GenServer.start(W, {o, ctx})

  def init({o, ctx}) do
    Process.flag(:trap_exit, Map.get(o, :trap, false))
    Log.name(ctx, o.id, self())
    Log.add(ctx, "init #{o.id}")
    state = {o, ctx, %{}}
    case Enum.at(Map.get(o, :inits, []), Log.count(ctx, o.id), "ok") do
      "ok" -> {:ok, state}
      "ignore" -> :ignore
      "crash" -> raise "boom"
      "stop" -> {:stop, :boom}
      "continue" -> send(self(), "queued in init"); {:ok, state, {:continue, "go on"}}
      "timeout" -> {:ok, state, 150}
    end
  end

  def handle_continue(what, {o, ctx, _} = s) do
    Log.add(ctx, "continue #{o.id} #{what}")
    {:noreply, s}
  end

  def handle_cast(op, s), do: perform(op, s)

  defp perform(["crash"], _), do: raise("boom")
  defp perform(["stop", reason], s), do: {:stop, Reason.read(reason), s}
  defp perform(["exit", reason], _), do: exit(Reason.read(reason))
  defp perform(["bad"], _), do: :nonsense
  defp perform(["throw"], s), do: throw({:noreply, s})
  defp perform(["link", id], {_, ctx, _} = s), do: (Process.link(Log.pid(ctx, id)); {:noreply, s})
  defp perform(["unlink", id], {_, ctx, _} = s), do: (Process.unlink(Log.pid(ctx, id)); {:noreply, s})
  defp perform(["monitor", id], {o, ctx, refs}) do
    {:noreply, {o, ctx, Map.put(refs, id, Process.monitor(Log.pid(ctx, id)))}}
  end
  defp perform(["demonitor", id], {_, _, refs} = s), do: (Process.demonitor(refs[id], [:flush]); {:noreply, s})
  defp perform(["await_down_then_demonitor", id], {_, ctx, refs} = s) do
    # the DOWN is in the mailbox already when it is flushed
    Process.exit(Log.pid(ctx, id), :kill)
    gone(Log.pid(ctx, id))
    Process.sleep(2)
    Process.demonitor(refs[id], [:flush])
    {:noreply, s}
  end
  defp perform(["send", id, text], {_, ctx, _} = s), do: (send(Log.pid(ctx, id), text); {:noreply, s})
  defp perform(["sleep", ms], s), do: (Process.sleep(ms); {:noreply, s})
  defp perform(["say", text], {o, ctx, _} = s), do: (Log.add(ctx, "said #{o.id} #{text}"); {:noreply, s})
  defp perform(["timeout", ms], s), do: {:noreply, s, ms}
  defp perform(["call", id, what, ms], {o, ctx, _} = s) do
    Log.add(ctx, "answer #{o.id} #{GenServer.call(Log.pid(ctx, id), what, ms)}")
    {:noreply, s}
  end
  defp perform(["continue", what], s), do: {:noreply, s, {:continue, what}}
  defp perform(["hibernate"], s), do: {:noreply, s, :hibernate}

  

  defp gone(pid) do
    if Process.alive?(pid), do: gone(pid)
  end

  def handle_call("echo", _, s), do: {:reply, "echo", s}
  def handle_call("crash", _, _), do: raise("boom")
  def handle_call("stop_reply", _, s), do: {:stop, :normal, "bye", s}
  def handle_call("stop_noreply", _, s), do: {:stop, :normal, s}
  def handle_call("stop_shutdown", _, s), do: {:stop, :shutdown, s}
  def handle_call("noreply", _, s), do: {:noreply, s}
  def handle_call("slow", _, s), do: (Process.sleep(60); {:reply, "late", s})
  def handle_call("throw_reply", _, s), do: throw({:reply, "thrown", s})
  def handle_call("bad", _, _), do: :nonsense
  def handle_call("exit_normal", _, _), do: exit(:normal)
  def handle_call("self", _, s), do: {:reply, GenServer.call(self(), "echo"), s}
  def handle_call("deferred", from, s), do: (spawn(fn -> GenServer.reply(from, "deferred") end); {:noreply, s})

  def handle_info({:EXIT, from, reason}, {o, ctx, _} = s) do
    Log.add(ctx, "exit #{o.id} from #{Log.id(ctx, from)} #{Reason.out(reason)}")
    {:noreply, s}
  end
  def handle_info({:DOWN, _, _, pid, reason}, {o, ctx, _} = s) do
    Log.add(ctx, "down #{o.id} of #{Log.id(ctx, pid)} #{Reason.out(reason)}")
    {:noreply, s}
  end
  def handle_info(:timeout, {o, ctx, _} = s), do: (Log.add(ctx, "timeout #{o.id}"); {:noreply, s})
  def handle_info({ref, late}, {o, ctx, _} = s) when is_reference(ref) do
    Log.add(ctx, "late #{o.id} #{late}")
    {:noreply, s}
  end
  def handle_info(text, {o, ctx, _} = s), do: (Log.add(ctx, "info #{o.id} #{text}"); {:noreply, s})

  def terminate(reason, {o, ctx, _}) do
    Log.add(ctx, "terminate #{o.id} #{Reason.out(reason)}")
    Process.sleep(Map.get(o, :stop_ms, 0))
    if Map.get(o, :stop_crash), do: raise("boom")
    Log.add(ctx, "terminated #{o.id}")
  end
end

defmodule S do
  # A supervisor that logs its own start; children are workers (maps with :id) or supervisors (maps with :children).
  use Supervisor

  def spec(o, ctx) do
    %{id: o.id, start: {S, :start_link, [o, ctx]}, type: :supervisor,
      restart: String.to_atom(Map.get(o, :restart, "permanent"))}
  end

  def start_link(o, ctx), do: Supervisor.start_link(S, {o, ctx})

  def init({o, ctx}) do
    Log.name(ctx, o.id, self())
    children = Enum.map(o.children, &child(&1, ctx))
    flags = %{strategy: String.to_atom(Map.get(o, :strategy, "one_for_one")),
              intensity: Map.get(o, :intensity, 3), period: 5,
              auto_shutdown: String.to_atom(Map.get(o, :auto_shutdown, "never"))}
    # not Supervisor.init: older Elixirs do not know auto_shutdown, which OTP has since 24
    {:ok, {flags, children}}
  end

  def child(%{dynamic: true} = o, ctx), do: D.spec(o, ctx)
  def child(%{children: _} = o, ctx), do: S.spec(o, ctx)
  def child(o, ctx), do: W.spec(o, ctx)
end

defmodule D do
  use DynamicSupervisor
  def spec(o, ctx), do: %{id: o.id, start: {D, :start_link, [o, ctx]}, type: :supervisor}
  def start_link(o, ctx), do: DynamicSupervisor.start_link(D, {o, ctx})
  def init({o, ctx}) do
    Log.name(ctx, o.id, self())
    DynamicSupervisor.init(strategy: :one_for_one, max_restarts: Map.get(o, :intensity, 3),
      max_seconds: 5, max_children: Map.get(o, :max_children, :infinity))
  end
end

defmodule Driver do
  def play(%{name: name, steps: steps}) do
    Process.flag(:trap_exit, true)
    ctx = %{log: Log.new(), driver: self()}
    for {step, n} <- Enum.with_index(steps) do
      try do
        perform(step, ctx)
      rescue
        ArgumentError -> Log.add(ctx, "nobody there")  # of this name there was never one
      catch
        :exit, {:noproc, _} -> Log.add(ctx, "nobody there")
        :exit, {reason, {GenServer, :call, _}} -> Log.add(ctx, "ended instead of answering: #{Reason.out(reason)}")
      end
      settle(ctx, Log.size(ctx), 0)
      notices(ctx)
      Enum.map(Log.take(ctx), &"#{name}\t#{n}\t#{&1}")
    end
    |> List.flatten()
  end

  # Quiet: nobody has a message, nobody runs, and the log did not grow for a few looks.
  defp settle(_ctx, _size, 4), do: :ok
  defp settle(ctx, size, calm) do
    Process.sleep(3)
    now = Log.size(ctx)
    idle = Enum.all?(Log.pids(ctx), &idle?/1)
    settle(ctx, now, if(now == size and idle, do: calm + 1, else: 0))
  end

  # In the loop of a gen_server and nowhere else: one who sleeps, calls, or has code loaded is at work.
  defp idle?(pid) do
    case Process.info(pid, [:status, :message_queue_len, :current_function]) do
      nil -> true
      [status: :waiting, message_queue_len: 0, current_function: {:gen_server, :loop, _}] -> true
      [status: :waiting, message_queue_len: 0, current_function: {:erlang, :hibernate, _}] -> true
      _ -> false
    end
  end

  defp notices(ctx) do
    receive do
      {:EXIT, pid, reason} -> Log.add(ctx, "exit driver from #{Log.id(ctx, pid)} #{Reason.out(reason)}"); notices(ctx)
      {:DOWN, _, _, pid, reason} -> Log.add(ctx, "down driver of #{Log.id(ctx, pid)} #{Reason.out(reason)}"); notices(ctx)
    after 0 -> :ok
    end
  end

  defp perform(["start", tree], ctx) do
    case S.start_link(tree, ctx) do
      {:ok, pid} -> Log.add(ctx, "started"); Process.unlink(pid); Process.monitor(pid)
      {:error, reason} -> Log.add(ctx, "start failed #{Reason.out(reason)}"); drop_exit()
    end
  end
  defp perform(["start_linked", tree], ctx) do
    {:ok, _} = S.start_link(tree, ctx)
    Log.add(ctx, "started")
  end
  defp perform(["worker", o], ctx) do
    case W.start(o, ctx) do
      {:ok, pid} -> Log.add(ctx, "started #{o.id}"); Process.monitor(pid)
      {:error, reason} -> Log.add(ctx, "start failed #{Reason.out(reason)}")
      :ignore -> Log.add(ctx, "ignored")
    end
  end
  defp perform(["linked_worker", o], ctx) do
    case W.start_link(o, ctx) do
      {:ok, _} -> Log.add(ctx, "started #{o.id}")
      {:error, reason} -> Log.add(ctx, "start failed #{Reason.out(reason)}")
      :ignore -> Log.add(ctx, "ignored")
    end
  end
  # steps without waiting for quiet in between
  defp perform(["together" | steps], ctx), do: Enum.each(steps, &perform(&1, ctx))
  defp perform(["cast", id | op], ctx), do: GenServer.cast(Log.pid(ctx, id), op)
  # several casts that are in the mailbox before the first is handled: the worker is suspended meanwhile
  defp perform(["casts", id, ops], ctx) do
    pid = Log.pid(ctx, id)
    :erlang.suspend_process(pid)
    for op <- ops, do: (if op == ["EXIT"], do: Process.exit(pid, :shutdown), else: GenServer.cast(pid, op))
    :erlang.resume_process(pid)
  end
  defp perform(["exit", id, reason], ctx), do: Process.exit(Log.pid(ctx, id), Reason.read(reason))
  defp perform(["exit_all", ids, reason], ctx) do
    pids = Enum.map(ids, &Log.pid(ctx, &1))
    sup = Log.pid(ctx, "sup")
    :sys.suspend(sup)
    for pid <- pids, do: Process.exit(pid, Reason.read(reason))
    Process.sleep(5)
    :sys.resume(sup)
  end
  defp perform(["call", id, what, ms], ctx) do
    me = self()
    spawn(fn ->
      answer = try do
        "reply #{GenServer.call(Log.pid(ctx, id), what, ms)}"
      catch
        :exit, reason -> "exit #{Reason.out(reason)}"
      end
      Log.add(ctx, "call #{id} #{what}: #{answer}")
      send(me, :called)
    end)
    receive do :called -> :ok end
  end
  defp perform(["stop", id, reason, ms], ctx) do
    answer = try do
      GenServer.stop(Log.pid(ctx, id), Reason.read(reason), ms); "ok"
    catch
      :exit, why -> "exit #{Reason.out(why)}"
    end
    Log.add(ctx, "stop #{id}: #{answer}")
  end
  defp perform(["monitor", id], ctx), do: Process.monitor(Log.pid(ctx, id))
  defp perform(["link", id], ctx), do: Process.link(Log.pid(ctx, id))
  defp perform(["sleep", ms], _), do: Process.sleep(ms)
  defp perform(["which", sup], ctx) do
    shown = Supervisor.which_children(Log.pid(ctx, sup)) |> Enum.reverse() |> Enum.map(fn {id, pid, _, _} ->
      "#{id}:#{if is_pid(pid), do: "up", else: pid}" end)
    Log.add(ctx, "which #{Enum.join(shown, " ")}")
  end
  defp perform(["count", sup], ctx) do
    c = Supervisor.count_children(Log.pid(ctx, sup))
    Log.add(ctx, "count specs=#{c.specs} active=#{c.active} supervisors=#{c.supervisors} workers=#{c.workers}")
  end
  defp perform([verb, sup, id], ctx) when verb in ["terminate_child", "restart_child", "delete_child"] do
    answer = apply(Supervisor, String.to_atom(verb), [Log.pid(ctx, sup), id])
    Log.add(ctx, "#{verb} #{id}: #{outcome(answer)}")
  end
  defp perform(["start_child", sup, o], ctx) do
    Log.add(ctx, "start_child #{o.id}: #{outcome(Supervisor.start_child(Log.pid(ctx, sup), S.child(o, ctx)))}")
  end
  defp perform(["start_dynamic", sup, o], ctx) do
    Log.add(ctx, "start_child #{o.id}: #{outcome(DynamicSupervisor.start_child(Log.pid(ctx, sup), W.spec(o, ctx)))}")
  end
  defp perform(["terminate_dynamic", sup, id], ctx) do
    Log.add(ctx, "terminate_child #{id}: #{outcome(DynamicSupervisor.terminate_child(Log.pid(ctx, sup), Log.pid(ctx, id)))}")
  end
  defp perform(["count_dynamic", sup], ctx) do
    c = DynamicSupervisor.count_children(Log.pid(ctx, sup))
    Log.add(ctx, "count specs=#{c.specs} active=#{c.active}")
  end

  defp outcome(:ok), do: "ok"
  defp outcome({:ok, :undefined}), do: "ok undefined"
  defp outcome({:ok, _}), do: "ok"
  defp outcome(:ignore), do: "ignore"
  defp outcome({:error, {:already_started, _}}), do: "already_started"
  defp outcome({:error, {%{__exception__: true}, _}}), do: "crash"
  defp outcome({:error, {reason, child}}) when elem(child, 0) == :child, do: Reason.out(reason)
  defp outcome({:error, reason}), do: Reason.out(reason)

  defp drop_exit do
    receive do {:EXIT, _, _} -> :ok after 5 -> :ok end
  end
end

[path] = System.argv()
{scenarios, _} = Code.eval_string(File.read!(path))

scenarios
|> Task.async_stream(&Driver.play/1, max_concurrency: 64, timeout: 30_000, ordered: true)
|> Enum.each(fn {:ok, lines} -> Enum.each(lines, &IO.puts/1) end)
